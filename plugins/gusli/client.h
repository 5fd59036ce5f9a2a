// The GUSLI client of this process: opened at run time through its adapter, started for the first
// backend that needs it and stopped with the last.
//
// Threads: thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nixl/error.h"

#include "client_abi.h"
#include "config.h"

namespace nixl::gusli {

class Client {
  public:
    // What the client is started with; backends that agree in it share the client.
    struct Options {
        std::string devices;  // in its own grammar
        std::string name;
        unsigned requests = 256;
        bool operator==(const Options& other) const = default;
    };

    static Result<std::shared_ptr<Client>> open(const Options& options);
    ~Client();
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    const NixlGusliClient& calls() const { return calls_; }
    // Connects, where no other backend has, and shares [memory, memory + bytes) with the device's
    // server.
    Result<NixlGusliDevice> connect(const DeviceConfig& config, void* memory, uint64_t bytes);
    // False where the client keeps the memory: then it must stay mapped for ever.
    bool disconnect(const std::string& id, void* memory, uint64_t bytes);

  private:
    Client(const NixlGusliClient& calls, Options options)
        : calls_(calls), options_(std::move(options)) {}

    const NixlGusliClient& calls_;
    const Options options_;
    bool started_ = false;

    struct Connection {
        NixlGusliDevice device{};
        unsigned users = 0;
    };
    std::mutex mutex_;                               // guards what follows
    std::map<std::string, Connection> connections_;  // by id
};

// The list of `devices` as the client reads it; an error where one does not fit into it.
Result<std::string> clientList(const std::vector<const DeviceConfig*>& devices);
// "no such device", with the number.
std::string clientError(int code);

}  // namespace nixl::gusli
