// A real etcd for tests, on free ports of the loopback, with its data in a folder of its own; ended
// and removed with the object. For one thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

namespace nixl::testkit {

// The programs "etcd" that are installed (PATH); empty: a test that needs one says SKIP.
std::vector<std::string> etcdPrograms();
// What else EtcdServer needs with this program and is not there, for such a test; else empty.
std::string lackingBeside(const std::string& program);

class EtcdServer {
  public:
    // `options` are added to its command line. Null where it does not come up.
    static std::unique_ptr<EtcdServer> start(const std::string& program,
                                             std::vector<std::string> options = {});
    ~EtcdServer();
    EtcdServer(const EtcdServer&) = delete;
    EtcdServer& operator=(const EtcdServer&) = delete;

    std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }
    // What etcdctl prints; it is beside etcd, or in PATH.
    std::string control(const std::vector<std::string>& words) const;
    void signal(int number) const;
    void stop(int number);  // and waits for its end
    bool startAgain();      // over the same data and ports
    void emptyData() const;

  private:
    EtcdServer() = default;
    bool launch();
    bool healthy() const;

    std::string program_;
    std::vector<std::string> options_;
    std::string folder_;
    int port_ = 0;
    int peerPort_ = 0;
    pid_t pid_ = -1;
};

}  // namespace nixl::testkit
