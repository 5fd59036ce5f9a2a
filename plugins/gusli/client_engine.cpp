// Buffers, requests and their ends; see client_engine.h.
#include "client_engine.h"

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <vector>

#include <poll.h>
#include <sys/mman.h>

#include "posix/loop_engine.h"

namespace nixl::gusli {

namespace {

constexpr unsigned kBuffers = 64;      // requests in flight, at most
constexpr double kStopSeconds = 5;     // for the client to give requests in flight back
constexpr int kRetryMs = 1;            // of a request that the client puts off
constexpr unsigned kMaxTries = 10000;  // of the same

int64_t resultOf(int code, uint64_t length) {
    switch (code) {
        case NIXL_GUSLI_OK:
            return static_cast<int64_t>(length);
        case NIXL_GUSLI_CANCELED:
            return -ECANCELED;
        case NIXL_GUSLI_LATER:
            return -EBUSY;
        case NIXL_GUSLI_REFUSED:
            return -EINVAL;
        case NIXL_GUSLI_SERVER:
            return -EREMOTEIO;
        default:
            return -EIO;
    }
}

class ClientEngine final : public posix::LoopEngine {
  public:
    ClientEngine(const NixlGusliClient& calls,
                 const posix::EngineOptions& options,
                 posix::RequestSource& source)
        : LoopEngine(options, source), calls_(calls), source_(source) {
        for (unsigned i = 0; i < options.depth; ++i) {
            slots_.push_back(std::make_unique<Slot>(*this, i));
        }
    }
    ~ClientEngine() override {
        for (const auto& slot : slots_) {
            if (slot->request != nullptr) {
                calls_.freeRequest(slot->request);
            }
        }
    }
    ClientEngine(const ClientEngine&) = delete;
    ClientEngine& operator=(const ClientEngine&) = delete;

    const char* name() const override { return "GUSLI client"; }
    bool vectored() const override { return false; }

  protected:
    std::string openQueue() override {
        for (const auto& slot : slots_) {
            slot->request = calls_.makeRequest();
            if (slot->request == nullptr) {
                return "the client makes no requests: out of memory";
            }
        }
        return {};
    }
    void closeQueue() override {
        const std::lock_guard lock(mutex_);  // whoever told of the last end is done with it
    }
    void enqueue(Entry& entry) override {
        slots_[entry.index]->tries = 0;
        submit(entry.index);
    }
    void step(bool wait) override {
        std::vector<unsigned> ended = takeEnded();
        bool paused = false;
        if (ended.empty() && wait) {
            pollfd wake{wakeFd(), POLLIN, 0};
            paused = poll(&wake, 1, later_.empty() ? -1 : kRetryMs) == 0;
            drainWake();
            ended = takeEnded();
        }
        if (paused || !ended.empty()) {
            std::vector<unsigned> again;
            again.swap(later_);
            for (const unsigned index : again) {
                submit(index);
            }
        }
        for (const unsigned index : ended) {
            conclude(index);
        }
    }

  private:
    struct Slot {
        Slot(ClientEngine& owner, unsigned number) : engine(owner), index(number) {}
        ClientEngine& engine;
        const unsigned index;
        void* request = nullptr;
        unsigned tries = 0;
    };

    // On a thread of the client.
    static void ended(void* context) {
        const Slot& slot = *static_cast<const Slot*>(context);
        const std::lock_guard lock(slot.engine.mutex_);
        slot.engine.ended_.push_back(slot.index);
        slot.engine.ring();
    }

    std::vector<unsigned> takeEnded() {
        const std::lock_guard lock(mutex_);
        std::vector<unsigned> all;
        all.swap(ended_);
        return all;
    }

    void submit(unsigned index) {
        const posix::IoRequest& request = entryAt(index).request;
        if (source_.abandoned(request)) {
            finished(entryAt(index), -ECANCELED);
            return;
        }
        const auto& device = *static_cast<const Device*>(request.file->owner());
        NixlGusliIo io{};
        io.descriptor = device.clientDescriptor();
        io.write = request.op == posix::IoOp::WRITE ? 1 : 0;
        io.offset = request.offset;
        io.length = request.length;
        io.memory = request.vectors->iov_base;
        io.ended = &ClientEngine::ended;
        io.context = slots_[index].get();
        calls_.submit(slots_[index]->request, &io);
    }

    void conclude(unsigned index) {
        Slot& slot = *slots_[index];
        const int code = calls_.result(slot.request);
        if (code == NIXL_GUSLI_LATER && ++slot.tries < kMaxTries) {
            later_.push_back(index);
            return;
        }
        if (code == NIXL_GUSLI_IN_FLIGHT) {  // told of before its result was written
            const std::lock_guard lock(mutex_);
            ended_.push_back(index);
            ring();
            return;
        }
        finished(entryAt(index), resultOf(code, entryAt(index).request.length));
    }

    const NixlGusliClient& calls_;
    posix::RequestSource& source_;
    std::vector<std::unique_ptr<Slot>> slots_;
    std::vector<unsigned> later_;  // put off by the client

    std::mutex mutex_;  // guards what follows
    std::vector<unsigned> ended_;
};

}  // namespace

Result<std::unique_ptr<ClientSide>> ClientSide::make(const Client::Options& options,
                                                     PluginServices& services) {
    Result<std::shared_ptr<Client>> client = Client::open(options);
    if (!client.ok()) {
        return client.status();
    }
    std::unique_ptr<ClientSide> side(new ClientSide(std::move(client).value()));
    NIXL_RETURN_IF_ERROR(side->start(options, services));
    return side;
}

// Buffers begin at multiples of their size, so that blocks up to it are aligned in memory too.
Status ClientSide::start(const Client::Options& options, PluginServices& services) {
    const unsigned count = std::min(options.requests, kBuffers);
    bytes_ = (count + 1) * kBufferBytes;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) {
        memory_ = nullptr;
        return Status::backend("GUSLI: " + std::to_string(bytes_ >> 20) +
                                   " MiB of buffers: " + posix::errnoText(errno),
                               errno);
    }
    const auto begin = reinterpret_cast<uint64_t>(memory_);
    const uint64_t first = (begin + kBufferBytes - 1) / kBufferBytes * kBufferBytes;
    munmap(memory_, first - begin);
    munmap(reinterpret_cast<void*>(first + count * kBufferBytes), begin + kBufferBytes - first);
    memory_ = reinterpret_cast<void*>(first);
    bytes_ = count * kBufferBytes;
    shared_ = std::make_unique<posix::Shared>("GUSLI", services.devices(), 1, count, kBufferBytes,
                                              memory_);
    shared_->log = [&services](const std::string& text) { services.log(LogLevel::INFO, text); };
    scheduler_ = std::make_unique<posix::Scheduler>(*shared_);
    posix::EngineOptions wanted;
    wanted.depth = count;
    wanted.maxBytesInFlight = bytes_;
    wanted.plugin = "GUSLI";
    auto engine = std::make_unique<ClientEngine>(client_->calls(), wanted, *scheduler_);
    scheduler_->setEngine(engine.get());
    shared_->queue = scheduler_.get();
    shared_->pool = scheduler_.get();
    if (const std::string why = engine->start("nixl-gusli"); !why.empty()) {
        return Status::backend("GUSLI: the GUSLI client's thread: " + why);
    }
    engine_ = std::move(engine);
    services.log(LogLevel::INFO,
                 std::string("GUSLI: the GUSLI client runs: ") + client_->calls().version());
    return {};
}

ClientSide::~ClientSide() {
    engine_.reset();
    scheduler_.reset();
    shared_.reset();
    for (const auto& [id, device] : devices_) {
        keeps_ = !client_->disconnect(id, memory_, bytes_) || keeps_;
    }
    if (memory_ != nullptr && !keeps_) {
        munmap(memory_, bytes_);
    }
}

Result<std::shared_ptr<Device>> ClientSide::connect(const DeviceConfig& config) {
    if (const auto known = devices_.find(config.id); known != devices_.end()) {
        return known->second;
    }
    Result<NixlGusliDevice> connected = client_->connect(config, memory_, bytes_);
    if (!connected.ok()) {
        return connected.status();
    }
    Result<std::shared_ptr<Device>> device = Device::ofClient(config, connected.value());
    if (!device.ok()) {
        keeps_ = !client_->disconnect(config.id, memory_, bytes_) || keeps_;
        return device;
    }
    devices_[config.id] = device.value();
    return device;
}

void ClientSide::stop(std::unique_ptr<ClientSide> side, PluginServices& services) {
    if (side == nullptr) {
        return;
    }
    ClientSide& all = *side;
    if (getpid() != all.process_) {  // forked: threads and client are the parent's
        [[maybe_unused]] const ClientSide* left = side.release();
        return;
    }
    all.shared_->closing = true;
    all.scheduler_->wake();
    if (!all.engine_->stop(kStopSeconds)) {
        services.log(LogLevel::WARN,
                     "GUSLI: the GUSLI client still holds requests (a hung server?); leaving them "
                     "to it");
        all.shared_->log = [](const std::string&) {};
        [[maybe_unused]] const ClientSide* left = side.release();  // what it still uses must stay
    }
}

}  // namespace nixl::gusli
