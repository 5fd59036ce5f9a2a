// The devices that go through the GUSLI client: its buffers, which it shares with the servers, and
// the engine that hands requests to it. User memory is always copied through these buffers, since
// memory that is shared with a server gets other pages.
//
// Threads: connect() and query by any, one at a time; start and end by the owner.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <unistd.h>

#include "nixl/services.h"

#include "client.h"
#include "device.h"
#include "posix/engine.h"
#include "posix/job.h"

namespace nixl::gusli {

// Everything that requests in flight may touch; outlives the backend when the client does not give
// them back.
class ClientSide {
  public:
    static constexpr uint64_t kBufferBytes = 1 << 20;

    static Result<std::unique_ptr<ClientSide>> make(const Client::Options& options,
                                                    PluginServices& services);
    ~ClientSide();
    ClientSide(const ClientSide&) = delete;
    ClientSide& operator=(const ClientSide&) = delete;

    // Stays connected until the end: another registration of the buffers would change their pages
    // under the GPU driver that knows them.
    Result<std::shared_ptr<Device>> connect(const DeviceConfig& config);
    posix::Shared& shared() { return *shared_; }
    // Ends a side that may be null. What the client does not give back is left to it.
    static void stop(std::unique_ptr<ClientSide> side, PluginServices& services);

  private:
    explicit ClientSide(std::shared_ptr<Client> client) : client_(std::move(client)) {}
    Status start(const Client::Options& options, PluginServices& services);

    const std::shared_ptr<Client> client_;
    const pid_t process_ = getpid();
    void* memory_ = nullptr;  // the buffers
    uint64_t bytes_ = 0;
    bool keeps_ = false;  // the client keeps the buffers
    std::map<std::string, std::shared_ptr<Device>> devices_;
    std::unique_ptr<posix::Shared> shared_;
    std::unique_ptr<posix::Scheduler> scheduler_;
    std::unique_ptr<posix::Engine> engine_;
};

}  // namespace nixl::gusli
