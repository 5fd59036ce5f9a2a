// The exporter itself: what a forked child keeps of its parent's endpoint.
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nixl/plugin.h"

extern "C" const nixl::PluginTable* nixlPluginTable();

namespace nixl::prometheus_exporter {
namespace {

using ::testing::StartsWith;

const char* parameterOf(void* context, const char* name) {
    const auto& values = *static_cast<std::map<std::string, std::string>*>(context);
    const auto found = values.find(name);
    return found == values.end() ? nullptr : found->second.c_str();
}

// An exporter that has published; destroyed with it.
class Running {
  public:
    Running(const std::string& directory, const std::string& port) {
        std::map<std::string, std::string> values{{"local", "yes"}, {"port", port}};
        const nixl_exporter_setup setup{"a",          "01234567", directory.c_str(),
                                        &parameterOf, nullptr,    &values};
        char error[512] = "";
        self_ = exporter().create(&setup, error, sizeof error);
        EXPECT_NE(self_, nullptr) << error;
        const nixl_metrics none{1, "{}", nullptr, 0};
        EXPECT_EQ(exporter().publish(self_, &none, error, sizeof error), 0) << error;
    }
    ~Running() { end(); }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    std::string port() const {
        const std::string url = exporter().endpoint(self_);
        EXPECT_THAT(url, StartsWith("http://127.0.0.1:"));
        return url.substr(17, url.find('/', 17) - 17);
    }
    void end() {
        if (self_ != nullptr) {
            exporter().destroy(std::exchange(self_, nullptr));
        }
    }

  private:
    static const nixl_exporter& exporter() { return *nixlPluginTable()->exporter; }

    void* self_ = nullptr;
};

// A socket connected with the port of the loopback; -1: refused.
int connectTo(const std::string& port) {
    const int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(one, reinterpret_cast<sockaddr*>(&place), sizeof place) == 0) {
        return one;
    }
    close(one);
    return -1;
}

TEST(PrometheusExporter, AForkedChildKeepsNothingOfItsParentsEndpoint) {
    std::string directory = ::testing::TempDir() + "nixl-exporter-XXXXXX";
    ASSERT_NE(mkdtemp(directory.data()), nullptr);
    int alive[2];
    int other[2];
    ASSERT_EQ(pipe(alive), 0);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, other), 0);
    Running first(directory, "0");
    const std::string port = first.port();
    // One that was accepted; asked over and over, as Prometheus does it.
    const int client = connectTo(port);
    ASSERT_GE(client, 0);
    const std::string request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    ASSERT_EQ(write(client, request.data(), request.size()), ssize_t(request.size()));
    char answer[1];
    ASSERT_EQ(read(client, answer, 1), 1);
    const pid_t child = fork();
    if (child == 0) {
        close(alive[1]);
        // What is not the endpoint's is kept.
        const bool kept = write(other[1], "k", 1) == 1;
        char end = 0;
        _exit(read(alive[0], &end, 1) == 0 && kept ? 0 : 1);
    }
    EXPECT_EQ(read(other[0], answer, 1), 1);
    const int second = connectTo(port);
    EXPECT_GE(second, 0) << "the parent serves as before";
    close(second);
    first.end();
    EXPECT_EQ(connectTo(port), -1) << "the child listens";
    std::string rest(1 << 16, ' ');
    const timeval patience{60, 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t got = 1;
    while (got > 0) {
        got = read(client, rest.data(), rest.size());
    }
    EXPECT_EQ(got, 0) << "the connection stays";
    close(client);
    {
        const Running next(directory, port);
        EXPECT_EQ(next.port(), port);
    }
    close(alive[1]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    for (const int fd : {alive[0], other[0], other[1]}) {
        close(fd);
    }
    std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace nixl::prometheus_exporter
