// The exporter PROMETHEUS. Every agent leaves what it counts in the telemetry directory (shelf.h);
// one process of those that share it serves them all at one endpoint, and when it ends another
// takes over within an interval. Threads: as nixl/exporter.h; the server has two of its own.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <netdb.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nixl/plugin.h"

#include "inherited.h"
#include "shelf.h"

namespace nixl::prometheus_exporter {
namespace {

class Shelf final : public prometheus::Collectable {
  public:
    explicit Shelf(std::string directory) : directory_(std::move(directory)) {}
    std::vector<prometheus::MetricFamily> Collect() const override { return collect(directory_); }

  private:
    const std::string directory_;
};

// Connects and hangs up.
void knock(std::string host, int port) {
    if (host.size() > 2 && host.front() == '[') {
        host = host.substr(1, host.size() - 2);
    }
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
        return;
    }
    const int one = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (one >= 0) {
        static_cast<void>(!connect(one, found->ai_addr, found->ai_addrlen));
        close(one);
    }
    freeaddrinfo(found);
}

// The endpoint of a directory, while this process serves it.
class Server {
  public:
    // Null with a text where it cannot be; null without one where another process serves.
    static std::shared_ptr<Server> start(const std::string& directory,
                                         const std::string& address,
                                         std::string& error) {
        const std::string path = directory + "/prometheus.lock";
        const int lock = open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (lock < 0) {
            error = "cannot open " + path + ": " + strerror(errno);
            return nullptr;
        }
        // Of the process, not of the descriptor: a forked child does not hold it.
        struct flock wanted {};
        wanted.l_type = F_WRLCK;
        wanted.l_whence = SEEK_SET;
        if (fcntl(lock, F_SETLK, &wanted) != 0) {
            if (errno != EAGAIN && errno != EACCES) {
                error = "cannot lock " + path + ": " + strerror(errno);
            }
            close(lock);
            return nullptr;
        }
        auto made = std::shared_ptr<Server>(new Server(directory, lock));
        try {
            made->host_ = address.substr(0, address.rfind(':'));
            const int port = listenNoted(made->host_, [&] {
                made->exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
                made->ports_ = made->exposer_->GetListeningPorts();
                return made->ports_.empty() ? 0 : made->ports_[0];
            });
            made->exposer_->RegisterCollectable(made->shelf_);
            made->url_ = "http://" + made->host_ + ":" + std::to_string(port) + "/metrics";
        } catch (const std::exception& failure) {
            error = "cannot listen at " + address + ": " + failure.what() +
                    " (is the port taken? NIXL_TELEMETRY_PROMETHEUS_PORT names another, 0 any)";
            return nullptr;
        }
        std::ofstream(directory + "/prometheus.endpoint") << made->url_ << "\n";
        return made;
    }
    ~Server() {
        endExposer();
        if (!url_.empty()) {
            unlink((directory_ + "/prometheus.endpoint").c_str());
        }
        close(lock_);
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    const std::string& url() const { return url_; }

  private:
    // Its threads look for the end every two seconds, or when somebody connects.
    void endExposer() {
        if (exposer_ == nullptr || ports_.empty()) {
            exposer_.reset();
            return;
        }
        std::atomic<bool> over{false};
        std::thread ending([this, &over] {
            exposer_.reset();
            over.store(true);
        });
        while (!over.load()) {
            knock(host_, ports_[0]);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        ending.join();
        forgetNoted(ports_[0]);
    }

    Server(std::string directory, int lock)
        : directory_(std::move(directory)),
          lock_(lock),
          shelf_(std::make_shared<Shelf>(directory_)) {}

    const std::string directory_;
    const int lock_;
    const std::shared_ptr<Shelf> shelf_;
    std::unique_ptr<prometheus::Exposer> exposer_;
    std::string host_;
    std::vector<int> ports_;
    std::string url_;
};

// The servers of this process by directory: its agents share them.
struct Servers {
    pid_t process = getpid();
    std::mutex mutex;
    std::map<std::string, std::weak_ptr<Server>> running;
};

// A forked child has none of its parent's threads, so it begins anew.
Servers& servers() {
    static constinit std::atomic<Servers*> known{nullptr};
    Servers* now = known.load();
    if (now == nullptr || now->process != getpid()) {
        auto fresh = std::make_unique<Servers>();
        if (known.compare_exchange_strong(now, fresh.get())) {
            now = fresh.release();
        }
    }
    return *now;
}

struct PrometheusExporter {
    std::string directory;
    std::string file;
    std::string address;
    std::shared_ptr<Server> server;  // null while another process serves
    std::string endpoint;

    std::string serve() {
        if (server != nullptr) {
            return {};
        }
        std::string error;
        Servers& all = servers();
        const std::lock_guard lock(all.mutex);
        std::weak_ptr<Server>& known = all.running[directory];
        server = known.lock();
        if (server == nullptr) {
            server = Server::start(directory, address, error);
            known = server;
        }
        return error;
    }
    void findEndpoint() {
        if (server != nullptr) {
            endpoint = server->url();
            return;
        }
        endpoint.clear();
        std::ifstream file_of_server(directory + "/prometheus.endpoint");
        std::getline(file_of_server, endpoint);
    }
};

int tell(const std::string& what, char* error, size_t size) {
    std::snprintf(error, size, "%s", what.c_str());
    return what.empty() ? 0 : 1;
}

void* create(const nixl_exporter_setup* setup, char* error, size_t error_size) {
    try {
        const auto value = [setup](const char* name) {
            const char* const text = setup->parameter(setup->context, name);
            return std::string(text != nullptr ? text : "");
        };
        Parameters parameters;
        parameters.set("local", value("local"), true);
        std::string host = value("host");
        if (host.empty()) {
            host = parameters.flag("local") ? "127.0.0.1" : "0.0.0.0";
        }
        auto made = std::make_unique<PrometheusExporter>();
        made->directory = setup->directory;
        made->file = fileOf(std::string(setup->id).substr(0, 8));
        made->address = host + ":" + value("port");
        return made.release();
    } catch (const std::exception& failure) {
        tell(failure.what(), error, error_size);
        return nullptr;
    }
}

int publish(void* self, const nixl_metrics* metrics, char* error, size_t error_size) {
    auto& exporter = *static_cast<PrometheusExporter*>(self);
    try {
        std::string wrong = leave(exporter.directory, exporter.file, *metrics);
        if (wrong.empty()) {
            wrong = exporter.serve();
        }
        exporter.findEndpoint();
        return tell(wrong, error, error_size);
    } catch (const std::exception& failure) {
        return tell(failure.what(), error, error_size) | 1;
    }
}

const char* endpoint(void* self) {
    return static_cast<PrometheusExporter*>(self)->endpoint.c_str();
}

void destroy(void* self) {
    std::unique_ptr<PrometheusExporter> gone(static_cast<PrometheusExporter*>(self));
    unlink((gone->directory + "/" + gone->file).c_str());
    Servers& all = servers();
    const std::lock_guard lock(all.mutex);  // who starts one meanwhile finds it ended
    gone->server.reset();
}

constexpr nixl_exporter kExporter{NIXL_EXPORTER_ABI, &create, &publish, &endpoint, &destroy};

constexpr ParameterSpec kParameters[] = {
    {"port", ParameterType::INTEGER, "9090", "of the endpoint; 0: the system chooses", 0, 65535},
    {"local", ParameterType::BOOL, "true", "whether only this host can read it"},
    {"host", ParameterType::STRING, "", "address to listen at, in place of `local`"},
};
constexpr const char* kAliases[] = {"PROMETHEUS_MP", nullptr};

constexpr PluginTable kTable{
    kPluginAbi,   PluginKind::TELEMETRY_EXPORTER,
    "PROMETHEUS", kAliases,
    "1",          "serves what the agents of a user count to Prometheus, at one endpoint",
    nullptr,      0,
    kParameters,  std::size(kParameters),
    nullptr,      &kExporter,
};

}  // namespace
}  // namespace nixl::prometheus_exporter

NIXL_EXPORT_PLUGIN(nixl::prometheus_exporter::kTable)
