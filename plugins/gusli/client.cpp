// Opening, starting and asking the client; see client.h.
#include "client.h"

#include <cstdlib>
#include <ctime>

#include <dlfcn.h>

namespace nixl::gusli {

namespace {

constexpr const char* kName = "libnixl_gusli_adapter.so";
constexpr size_t kLongestList = 1023;  // what the client reads of it
constexpr size_t kLongestPath = 64;
constexpr size_t kLongestCookie = 15;
constexpr int kUnshareTries = 2000;  // one a millisecond

constinit std::mutex g_mutex;           // guards what follows
constinit Client* g_running = nullptr;  // the client that has started
constinit unsigned g_users = 0;

std::string environment(const char* name, const char* fallback) {
    const char* const value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : fallback;
}

// Once opened it stays until the process ends.
Result<const NixlGusliClient*> openAdapter() {
    const std::string path = environment("NIXL_GUSLI_LIBRARY", kName);
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return Status::notFound("GUSLI: the adapter of the GUSLI client cannot be opened (" +
                                std::string(why != nullptr ? why : path) +
                                "); build it as the backend's README says (" + kName +
                                "), or name it in NIXL_GUSLI_LIBRARY");
    }
    const auto entry = reinterpret_cast<NixlGusliEntry>(dlsym(handle, NIXL_GUSLI_ENTRY));
    if (entry == nullptr) {
        dlclose(handle);
        return Status::notFound(
            "GUSLI: " + path + " is no adapter of the GUSLI client: it has no " + NIXL_GUSLI_ENTRY);
    }
    const NixlGusliClient* const table = entry();
    if (table == nullptr || table->abi != NIXL_GUSLI_ABI ||
        table->bytes < sizeof(NixlGusliClient)) {
        const std::string found = table == nullptr ? "none" : std::to_string(table->abi);
        dlclose(handle);
        return Status::notSupported("GUSLI: the adapter " + path + " is of interface " + found +
                                    ", this backend's is " + std::to_string(NIXL_GUSLI_ABI) +
                                    "; build it again");
    }
    return table;
}

ErrorCode codeOf(int code) {
    return code == NIXL_GUSLI_NO_DEVICE   ? ErrorCode::NOT_FOUND
           : code == NIXL_GUSLI_ARGUMENTS ? ErrorCode::INVALID_PARAM
                                          : ErrorCode::BACKEND;
}

}  // namespace

std::string clientError(int code) {
    const char* const text = code == NIXL_GUSLI_NO_DEVICE     ? "no such device"
                             : code == NIXL_GUSLI_NO_RESPONSE ? "no response of the server"
                             : code == NIXL_GUSLI_OPEN        ? "in use already"
                             : code == NIXL_GUSLI_ARGUMENTS   ? "wrong arguments"
                                                              : "refused";
    return std::string(text) + " (" + std::to_string(code) + ")";
}

Result<std::string> clientList(const std::vector<const DeviceConfig*>& devices) {
    std::string text = "# version=1\n";
    for (const DeviceConfig* device : devices) {
        const auto wrong = [device](const std::string& what, size_t length, size_t most) {
            return Status::invalidParam("GUSLI: config_file line " + std::to_string(device->line) +
                                        ": " + what + " has " + std::to_string(length) +
                                        " bytes; the GUSLI client takes at most " +
                                        std::to_string(most));
        };
        const std::string cookie = device->security.empty() ? "sec=0" : device->security;
        if (device->path.size() > kLongestPath) {
            return wrong("the path \"" + device->path + "\"", device->path.size(), kLongestPath);
        }
        if (cookie.size() > kLongestCookie) {
            return wrong("the cookie", cookie.size(), kLongestCookie);
        }
        text += device->id + " " + static_cast<char>(device->kind) + " " +
                static_cast<char>(device->access) + (device->direct ? " D " : " N ") +
                device->path + " " + cookie + "\n";
    }
    if (text.size() > kLongestList) {
        return Status::invalidParam(
            "GUSLI: the " + std::to_string(devices.size()) +
            " devices that go through the GUSLI client make a list of " +
            std::to_string(text.size()) + " bytes, of which it reads only " +
            std::to_string(kLongestList) + "; use shorter ids and paths, or fewer devices");
    }
    return text;
}

Result<std::shared_ptr<Client>> Client::open(const Options& options) {
    const auto give_back = [](Client* client) {
        const std::lock_guard lock(g_mutex);
        if (--g_users == 0) {
            g_running = nullptr;
            delete client;
        }
    };
    const std::lock_guard lock(g_mutex);
    if (g_running != nullptr && !(g_running->options_ == options)) {
        return Status::notAllowed(
            "GUSLI: the GUSLI client of this process runs already with another list of devices, "
            "client_name or max_num_simultaneous_requests; a process has one client");
    }
    if (g_running == nullptr) {
        Result<const NixlGusliClient*> calls = openAdapter();
        if (!calls.ok()) {
            return calls.status();
        }
        std::unique_ptr<Client> made(new Client(*calls.value(), options));
        const int code =
            made->calls_.start(options.devices.c_str(), options.name.c_str(), options.requests,
                               environment("NIXL_GUSLI_LOG", "/dev/null").c_str());
        if (code != NIXL_GUSLI_OK) {
            return Status::backend("GUSLI: the GUSLI client does not start: " + clientError(code) +
                                   "; NIXL_GUSLI_LOG names a file for what it says");
        }
        made->started_ = true;
        g_running = made.release();
    }
    ++g_users;
    return std::shared_ptr<Client>(g_running, give_back);
}

Client::~Client() {
    if (started_) {
        calls_.stop();
    }
}

Result<NixlGusliDevice> Client::connect(const DeviceConfig& config, void* memory, uint64_t bytes) {
    const std::string what = "GUSLI: device " + config.id + " (\"" + config.path + "\"): ";
    const std::lock_guard lock(mutex_);
    Connection& connection = connections_[config.id];
    if (connection.users == 0) {
        const int code = calls_.connect(config.id.c_str(), &connection.device);
        if (code != NIXL_GUSLI_OK) {
            return Status(codeOf(code),
                          what + "the GUSLI client cannot connect: " + clientError(code));
        }
    }
    const int code = calls_.share(config.id.c_str(), memory, bytes);
    if (code != NIXL_GUSLI_OK) {
        if (connection.users == 0) {
            calls_.disconnect(config.id.c_str());
        }
        return Status(codeOf(code), what + "the GUSLI client cannot share " +
                                        std::to_string(bytes >> 20) +
                                        " MiB of buffers with its server: " + clientError(code));
    }
    ++connection.users;
    return connection.device;
}

// The client refuses to take memory back while it has any request of that device, also another
// backend's.
bool Client::disconnect(const std::string& id, void* memory, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    int code = calls_.unshare(id.c_str(), memory, bytes);
    for (int i = 0; code != NIXL_GUSLI_OK && i < kUnshareTries; ++i) {
        const timespec pause{0, 1'000'000};
        nanosleep(&pause, nullptr);
        code = calls_.unshare(id.c_str(), memory, bytes);
    }
    Connection& connection = connections_[id];
    if (--connection.users == 0) {
        calls_.disconnect(id.c_str());
    }
    return code == NIXL_GUSLI_OK;
}

}  // namespace nixl::gusli
