// See mooncake_engine.h.
#include "mooncake_engine.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <system_error>
#include <thread>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace nixl::mooncake {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kPeerToPeer[] = "P2PHANDSHAKE";  // no server holds the metadata
constexpr auto kEndPatience = std::chrono::milliseconds(300);
constexpr int kTries = 5;
constexpr auto kOwnPatience = std::chrono::seconds(10);
// The engine counts an end before it has done with the batch.
constexpr auto kRest = std::chrono::seconds(1);
constexpr auto kLeastRest = std::chrono::milliseconds(20);
constexpr size_t kMostResting = 1 << 15;  // requests

// Which devices an rdma transport takes, by preference, for any memory.
std::string deviceMatrix(const std::vector<std::string>& devices) {
    std::string names;
    for (const std::string& device : devices) {
        names += (names.empty() ? "\"" : ",\"") + device + "\"";
    }
    return R"({"*":[[)" + names + R"(],[]],"cpu:0":[[)" + names + "],[]]}";
}

// While it lives, connections come and go at an engine's port: the thread that listens there looks
// only once a second, or when one comes, whether it is to end.
class Knocking {
  public:
    explicit Knocking(const std::string& name) {
        const size_t colon = name.rfind(':');
        address_.sin_family = AF_INET;
        if (colon == std::string::npos ||
            inet_pton(AF_INET, name.substr(0, colon).c_str(), &address_.sin_addr) != 1) {
            return;
        }
        address_.sin_port = htons(static_cast<uint16_t>(std::atoi(name.c_str() + colon + 1)));
        const NoSignals for_it;
        try {
            thread_ = std::thread([this] { knock(); });
        } catch (const std::system_error&) {
            over_ = true;  // nobody knocks: it takes its second
        }
    }
    ~Knocking() {
        over_ = true;
        if (thread_.joinable()) {
            thread_.join();
        }
    }
    Knocking(const Knocking&) = delete;
    Knocking& operator=(const Knocking&) = delete;

  private:
    void knock() const {
        std::this_thread::sleep_for(kFirst);
        while (!over_) {
            const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            if (fd >= 0) {
                // Whether it connects does not matter: the attempt wakes who listens.
                [[maybe_unused]] const int connected =
                    connect(fd, reinterpret_cast<const sockaddr*>(&address_), sizeof(address_));
                close(fd);
            }
            std::this_thread::sleep_for(kKnock);
        }
    }

    static constexpr auto kFirst = std::chrono::milliseconds(3);
    static constexpr auto kKnock = std::chrono::milliseconds(15);  // it logs each
    sockaddr_in address_{};
    std::atomic<bool> over_{false};
    std::thread thread_;
};

}  // namespace

NoSignals::NoSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
}

NoSignals::~NoSignals() {
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

Result<std::shared_ptr<Engine>> Engine::create(const MooncakeLibrary& library,
                                               const EngineOptions& options) {
    const NoSignals for_its_threads;
    Status status;
    for (int tries = 0; tries < kTries; ++tries) {
        std::shared_ptr<Engine> made(new Engine(library, options));
        if (made->openSafely(status)) {
            NIXL_RETURN_IF_ERROR(status);
            return made;
        }
    }
    return status;
}

// False where another try may do: the engine looks for a free port, lets go of it, and throws where
// somebody else has taken it by the time it listens there.
bool Engine::openSafely(Status& status) {
    try {
        status = open();
        return true;
    } catch (const std::exception& error) {
        status = Status::backend("Mooncake makes no engine for local_hostname \"" + options_.host +
                                 "\": " + error.what());
        engine_ = nullptr;  // half made, it stays as it is
        return false;
    }
}

Status Engine::open() {
    // The engine takes a free port of its own choice.
    engine_ = library_.create(kPeerToPeer, options_.host.c_str(), options_.host.c_str(), 0, 0);
    if (engine_ == nullptr) {
        return Status::backend("Mooncake makes no engine for local_hostname \"" + options_.host +
                               "\" (its log on stderr says why; it wants free ports, and " +
                               options_.host + " as an address of this machine)");
    }
    NIXL_RETURN_IF_ERROR(install());
    std::array<char, 256> name{};
    if (const int code = library_.localName(engine_, name.data(), name.size()); code != 0) {
        return Status::backend("Mooncake's engine does not tell its name: " + engineError(code));
    }
    name_ = name.data();
    const size_t colon = name_.rfind(':');
    if (colon == std::string::npos || colon + 1 == name_.size()) {
        return Status::mismatch("Mooncake at " + library_.path + " calls its engine \"" + name_ +
                                "\", which is no address and port: another ABI");
    }
    return {};
}

Status Engine::install() {
    std::string matrix = deviceMatrix(options_.devices);
    std::array<void*, 2> arguments{matrix.data(), nullptr};
    void** const given =
        options_.protocol == "rdma" && !options_.devices.empty() ? arguments.data() : nullptr;
    if (library_.installTransport(engine_, options_.protocol.c_str(), given) == nullptr) {
        return Status::backend("Mooncake at " + library_.path + " has no working transport \"" +
                               options_.protocol +
                               "\" here (its log on stderr says why); protocol tcp works anywhere");
    }
    return {};
}

Engine::~Engine() {
    end();
}

bool Engine::end() {
    const std::unique_lock alone(alive_, kEndPatience);
    if (!alone.owns_lock()) {
        return false;
    }
    if (engine_ == nullptr) {
        return true;
    }
    // A forked child has none of its threads to join.
    if (getpid() == process_) {
        freeOld(true);
        const Knocking to_be_quick(name_);
        library_.destroy(engine_);
    }
    engine_ = nullptr;
    return true;
}

Status Engine::registerMemory(uint64_t address, uint64_t size, const std::string& location) {
    const std::shared_lock calls(alive_);
    if (engine_ == nullptr) {
        return Status::canceled("Mooncake's engine has ended");
    }
    const int code = library_.registerMemory(engine_, reinterpret_cast<void*>(address), size,
                                             location.c_str(), 1);
    if (code == 0) {
        return {};
    }
    char where[64];
    std::snprintf(where, sizeof(where), "%#lx, %lu bytes", static_cast<unsigned long>(address),
                  static_cast<unsigned long>(size));
    return Status::backend("Mooncake does not register memory at " + std::string(where) + ": " +
                           engineError(code));
}

void Engine::unregisterMemory(uint64_t address) {
    const std::shared_lock calls(alive_);
    if (engine_ != nullptr) {
        library_.unregisterMemory(engine_, reinterpret_cast<void*>(address));
    }
}

Result<int32_t> Engine::openSegment(const std::string& name) {
    const std::shared_lock calls(alive_);
    if (engine_ == nullptr) {
        return Status::canceled("Mooncake's engine has ended");
    }
    const auto open =
        library_.openSegmentAnew != nullptr ? library_.openSegmentAnew : library_.openSegment;
    const int32_t segment = open(engine_, name.c_str());
    if (segment < 0) {
        return Status::disconnected("Mooncake's engine does not reach segment " + name + ": " +
                                    engineError(segment));
    }
    return segment;
}

void Engine::closeSegment(int32_t segment) {
    const std::shared_lock calls(alive_);
    if (engine_ != nullptr) {
        library_.closeSegment(engine_, segment);
    }
}

Result<uint64_t> Engine::submit(std::vector<EngineRequest>& requests) {
    const std::shared_lock calls(alive_);
    if (engine_ == nullptr) {
        return Status::canceled("Mooncake's engine has ended");
    }
    freeOld(false);
    const uint64_t batch = library_.allocateBatch(engine_, requests.size());
    if (batch == kNoBatch) {
        return Status::backend("Mooncake gives no batch for " + std::to_string(requests.size()) +
                               " requests");
    }
    if (const int code = library_.submit(engine_, batch, requests.data(), requests.size());
        code != 0) {
        return Status::backend("Mooncake refused " + std::to_string(requests.size()) +
                               " requests: " + engineError(code));
    }
    return batch;
}

bool Engine::ended(uint64_t batch, size_t index, bool& good) {
    const std::shared_lock calls(alive_);
    EngineStatus status;
    if (engine_ == nullptr) {
        return false;
    }
    good = library_.status(engine_, batch, index, &status) == 0;
    if (good && status.state <= kEnginePending) {
        return false;
    }
    good = good && status.state == kEngineCompleted;
    return true;
}

void Engine::release(uint64_t batch, size_t requests) {
    const std::lock_guard lock(releasedMutex_);
    released_.push_back({batch, requests, Clock::now()});
    releasedRequests_ += requests;
}

// REQUIRES: alive_ is held, engine_ is one
void Engine::freeOld(bool all) {
    const std::lock_guard lock(releasedMutex_);
    const auto now = Clock::now();
    while (!released_.empty()) {
        const Released& first = released_.front();
        const auto rested = now - first.when;
        const bool many = releasedRequests_ > kMostResting && rested >= kLeastRest;
        if (!all && !many && rested < kRest) {
            return;
        }
        library_.freeBatch(engine_, first.batch);
        releasedRequests_ -= first.requests;
        released_.pop_front();
    }
}

// Reads 40 bytes of memory registered for it through its own segment.
Status Engine::tryItself() {
    constexpr size_t kSize = 40;
    std::vector<char> there(4096);
    std::vector<char> here(4096);
    for (size_t i = 0; i < there.size(); ++i) {
        there[i] = static_cast<char>(i * 7 + 3);
    }
    const auto source = reinterpret_cast<uint64_t>(there.data());
    NIXL_RETURN_IF_ERROR(registerMemory(source, there.size(), "*"));
    NIXL_RETURN_IF_ERROR(registerMemory(reinterpret_cast<uint64_t>(here.data()), here.size(), "*"));
    const Result<int32_t> segment = openSegment(name_);
    if (!segment.ok()) {
        return segment.status();
    }
    std::vector<EngineRequest> one{
        {kEngineRead, here.data() + 8, segment.value(), 0, source + 16, kSize}};
    const Result<uint64_t> batch = submit(one);
    bool good = false;
    const auto limit = Clock::now() + kOwnPatience;
    bool over = false;
    while (batch.ok() && !(over = ended(batch.value(), 0, good)) && Clock::now() < limit) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (batch.ok() && !over) {
        end();  // before the memory goes
    } else if (batch.ok()) {
        release(batch.value(), 1);
    }
    unregisterMemory(source);
    unregisterMemory(reinterpret_cast<uint64_t>(here.data()));
    const bool same = std::memcmp(here.data() + 8, there.data() + 16, kSize) == 0 && here[7] == 0 &&
                      here[8 + kSize] == 0;
    if (good && same) {
        return {};
    }
    const std::string what = !batch.ok() ? batch.status().message()
                             : !over     ? "nothing came within 10 s"
                             : !good     ? "it failed"
                                         : "other bytes came than were asked for: another ABI";
    return Status::mismatch("Mooncake at " + library_.path +
                            " cannot read 40 bytes of its own by " + name_ + ": " + what);
}

}  // namespace nixl::mooncake
