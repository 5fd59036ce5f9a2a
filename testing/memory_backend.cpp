// See memory_backend.h.
#include "testing/memory_backend.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <unistd.h>

#include "base/mutex.h"

namespace nixl::testkit {
namespace {

constexpr uint64_t kSlice = 256 << 10;  // between two looks at the cancel flag

// Where notifications for one backend object arrive; outlives it in the hands of senders.
class Inbox {
  public:
    explicit Inbox(PluginServices& services) : services_(&services) {}
    Status deliver(std::string_view from, std::string_view message) {
        const MutexLock lock(mutex_);
        if (services_ == nullptr) {
            return Status::disconnected("MEMORY: the peer's backend has been destroyed");
        }
        services_->deliverNotification(from, std::string(message));
        return {};
    }
    void end() {
        const MutexLock lock(mutex_);
        services_ = nullptr;
    }

  private:
    Mutex mutex_;
    PluginServices* services_ NIXL_GUARDED_BY(mutex_);
};

// The inboxes of this process by number: what the connection info of a peer names.
class Inboxes {
  public:
    static Inboxes& instance() {
        static Inboxes* const inboxes = new Inboxes;
        return *inboxes;
    }
    uint64_t add(const std::shared_ptr<Inbox>& inbox) {
        const MutexLock lock(mutex_);
        inboxes_[++last_] = inbox;
        return last_;
    }
    void remove(uint64_t number) {
        const MutexLock lock(mutex_);
        inboxes_.erase(number);
    }
    std::shared_ptr<Inbox> find(uint64_t number) {
        const MutexLock lock(mutex_);
        const auto found = inboxes_.find(number);
        return found != inboxes_.end() ? found->second.lock() : nullptr;
    }

  private:
    Mutex mutex_;
    uint64_t last_ NIXL_GUARDED_BY(mutex_) = 0;
    std::map<uint64_t, std::weak_ptr<Inbox>> inboxes_ NIXL_GUARDED_BY(mutex_);
};

struct Options {
    uint64_t inlineLimit = 0;
    std::chrono::microseconds delay{0};
    int64_t maxRegions = 0;
    int64_t maxPending = 0;
    bool manual = false;
};

// Copies that wait for progress(), where the backend has no threads of its own.
class ManualQueue {
  public:
    void push(std::function<void()> task) {
        const MutexLock lock(mutex_);
        tasks_.push_back(std::move(task));
    }
    void runAll() {
        std::vector<std::function<void()>> tasks;
        {
            const MutexLock lock(mutex_);
            tasks.swap(tasks_);
        }
        for (const std::function<void()>& task : tasks) {
            task();
        }
    }

  private:
    Mutex mutex_;
    std::vector<std::function<void()>> tasks_ NIXL_GUARDED_BY(mutex_);
};

// Takes one of so many buffers, gives it back when destroyed.
class Ticket {
  public:
    static std::unique_ptr<Ticket> take(std::atomic<int64_t>& used, int64_t limit) {
        if (used.fetch_add(1) < limit) {
            return std::unique_ptr<Ticket>(new Ticket(used));
        }
        used.fetch_sub(1);
        return nullptr;
    }
    ~Ticket() { used_.fetch_sub(1); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

  private:
    explicit Ticket(std::atomic<int64_t>& used) : used_(used) {}
    std::atomic<int64_t>& used_;
};

struct HostMemory final : BackendMemory {
    HostMemory(uint64_t start, uint64_t bytes, std::unique_ptr<Ticket> buffer)
        : address(start), size(bytes), ticket(std::move(buffer)) {}
    const uint64_t address;
    const uint64_t size;
    const std::unique_ptr<Ticket> ticket;  // none for imported memory
};

void copySegment(OpType op, const Segment& segment, uint64_t from, uint64_t size) {
    auto* const local = reinterpret_cast<char*>(segment.local + from);
    auto* const remote = reinterpret_cast<char*>(segment.remote + from);
    std::memmove(op == OpType::READ ? local : remote, op == OpType::READ ? remote : local, size);
}

// One post, kept by whoever works on it.
struct Post {
    CompletionPtr completion;
    const TransferPlan* plan = nullptr;  // valid while the completion is pending
    std::shared_ptr<Inbox> inbox;        // none: no notification
    std::string from;
    std::string message;
    std::unique_ptr<Ticket> ticket;
    std::atomic<bool> started{false};

    void copy() {
        SegmentCursor cursor(plan->runs);
        for (Segment segment; cursor.next(segment);) {
            for (uint64_t done = 0; done < segment.size; done += kSlice) {
                if (completion->cancelRequested()) {
                    ticket.reset();
                    completion->cancel("MEMORY: canceled while copying");
                    return;
                }
                copySegment(plan->op, segment, done, std::min(kSlice, segment.size - done));
            }
        }
        const Status told = inbox ? inbox->deliver(from, message) : Status();
        ticket.reset();
        if (told.ok()) {
            completion->succeed();
        } else {
            completion->fail(told);
        }
    }
};

class MemoryTransfer final : public BackendTransfer {
  public:
    MemoryTransfer(const TransferPlan& plan,
                   const Options& options,
                   PluginServices& services,
                   std::shared_ptr<Inbox> inbox,
                   std::atomic<int64_t>& pending,
                   ManualQueue& manual)
        : plan_(plan),
          options_(options),
          services_(services),
          inbox_(std::move(inbox)),
          pending_(pending),
          manual_(manual) {}

    Status post(CompletionPtr completion,
                std::string_view notification,
                bool has_notification) override {
        auto post = std::make_shared<Post>();
        post->ticket = Ticket::take(pending_, options_.maxPending);
        if (!post->ticket) {
            return Status::notAllowed("MEMORY: max_pending=" + std::to_string(options_.maxPending) +
                                      " transfers are in progress already");
        }
        post->completion = std::move(completion);
        post->plan = &plan_;
        if (has_notification) {
            post->inbox = inbox_;
            post->from = services_.agentName();
            post->message = notification;
        }
        {
            const MutexLock lock(mutex_);
            post_ = post;
        }
        if (options_.delay.count() > 0) {
            services_.reactor().startTimer(
                Reactor::Clock::now() + options_.delay, [post, &services = services_] {
                    if (!post->started.exchange(true)) {
                        services.copyPool().run([post] { post->copy(); });
                    }
                });
        } else if (post->started.exchange(true)) {
            return {};  // a cancel came first and has ended it
        } else if (options_.manual) {
            manual_.push([post] { post->copy(); });
        } else if (plan_.bytes <= options_.inlineLimit) {
            post->copy();
        } else {
            services_.copyPool().run([post] { post->copy(); });
        }
        return {};
    }

    void cancel() override {
        std::shared_ptr<Post> post;
        {
            const MutexLock lock(mutex_);
            post = post_;
        }
        if (post && !post->started.exchange(true)) {
            post->ticket.reset();
            post->completion->cancel("MEMORY: canceled before the copy began");
        }
    }

    TransferDescription describe() const override {
        return {"memory", "both sides are memory of this process", "memory"};
    }
    std::optional<TransferCost> estimateCost() const override {
        return TransferCost{std::chrono::microseconds(1 + plan_.bytes / 8000),
                            std::chrono::microseconds(1 + plan_.bytes / 8000),
                            "memory copy at 8 GB/s"};
    }

  private:
    const TransferPlan& plan_;
    const Options& options_;
    PluginServices& services_;
    const std::shared_ptr<Inbox> inbox_;
    std::atomic<int64_t>& pending_;
    ManualQueue& manual_;
    Mutex mutex_;
    std::shared_ptr<Post> post_ NIXL_GUARDED_BY(mutex_);
};

class MemoryBackend final : public Backend, public RemoteSupport, public NotificationSupport {
  public:
    MemoryBackend(const Options& options, PluginServices& services)
        : options_(options),
          services_(services),
          inbox_(std::make_shared<Inbox>(services)),
          number_(Inboxes::instance().add(inbox_)) {}
    ~MemoryBackend() override {
        Inboxes::instance().remove(number_);
        inbox_->end();
    }

    const BackendInfo& info() const override { return info_; }
    RemoteSupport* remote() override { return this; }
    NotificationSupport* notifications() override { return this; }
    void progress() override { manual_.runAll(); }
    bool needsProgress() const override { return options_.manual; }

    Result<std::unique_ptr<BackendMemory>> registerMemory(const MemoryRegion& region) override {
        if (region.type != MemType::DRAM) {
            return Status::notSupported(std::string("MEMORY: cannot hold ") +
                                        memTypeName(region.type));
        }
        auto ticket = Ticket::take(regions_, options_.maxRegions);
        if (!ticket) {
            return Status::notAllowed("MEMORY: max_regions=" + std::to_string(options_.maxRegions) +
                                      " regions are registered already");
        }
        return std::unique_ptr<BackendMemory>(
            std::make_unique<HostMemory>(region.address, region.size, std::move(ticket)));
    }

    Result<std::unique_ptr<BackendTransfer>> prepareTransfer(const TransferPlan& plan) override {
        std::shared_ptr<Inbox> inbox = inbox_;
        if (!plan.peer.self) {
            const MutexLock lock(mutex_);
            const auto found = peers_.find(plan.peer.incarnation);
            if (found == peers_.end()) {
                return Status::notFound("MEMORY: peer \"" + std::string(plan.peer.name) +
                                        "\" is not known");
            }
            inbox = found->second;
        }
        return std::unique_ptr<BackendTransfer>(std::make_unique<MemoryTransfer>(
            plan, options_, services_, std::move(inbox), pending_, manual_));
    }

    Result<std::string> connectionInfo() override {
        return std::to_string(getpid()) + ":" + std::to_string(number_);
    }
    Status addPeer(const PlanPeer& peer, std::string_view connection_info) override {
        const std::string own = std::to_string(getpid()) + ":";
        uint64_t number = 0;
        if (!connection_info.starts_with(own) ||
            std::from_chars(connection_info.data() + own.size(),
                            connection_info.data() + connection_info.size(), number)
                    .ec != std::errc()) {
            return Status::invalidParam("MEMORY: \"" + std::string(connection_info) +
                                        "\" names no backend of this process");
        }
        auto inbox = Inboxes::instance().find(number);
        if (!inbox) {
            return Status::disconnected("MEMORY: peer \"" + std::string(peer.name) + "\" is gone");
        }
        const MutexLock lock(mutex_);
        peers_[peer.incarnation] = std::move(inbox);
        return {};
    }
    void removePeer(const PlanPeer& peer) override {
        const MutexLock lock(mutex_);
        peers_.erase(peer.incarnation);
    }
    Status connect(const PlanPeer& /*peer*/) override { return {}; }
    Result<std::string> exportMemory(const BackendMemory& memory) override {
        const auto& host = static_cast<const HostMemory&>(memory);
        return std::to_string(host.address) + ":" + std::to_string(host.size);
    }
    Result<std::unique_ptr<BackendMemory>> importMemory(const PlanPeer& peer,
                                                        const MemoryRegion& region,
                                                        std::string_view blob) override {
        if (blob != std::to_string(region.address) + ":" + std::to_string(region.size)) {
            return Status::mismatch("MEMORY: \"" + std::string(blob) + "\" is not the memory " +
                                    "that peer \"" + std::string(peer.name) + "\" declares");
        }
        return std::unique_ptr<BackendMemory>(
            std::make_unique<HostMemory>(region.address, region.size, nullptr));
    }

    Status sendNotification(const PlanPeer& peer, std::string_view message) override {
        std::shared_ptr<Inbox> inbox = inbox_;
        if (!peer.self) {
            const MutexLock lock(mutex_);
            const auto found = peers_.find(peer.incarnation);
            if (found == peers_.end()) {
                return Status::notFound("MEMORY: peer \"" + std::string(peer.name) +
                                        "\" is not known");
            }
            inbox = found->second;
        }
        return inbox->deliver(services_.agentName(), message);
    }

  private:
    const BackendInfo info_{"MEMORY", {MemType::DRAM}, false};
    const Options options_;
    PluginServices& services_;
    const std::shared_ptr<Inbox> inbox_;
    const uint64_t number_;
    std::atomic<int64_t> regions_{0};
    std::atomic<int64_t> pending_{0};
    ManualQueue manual_;
    Mutex mutex_;
    std::map<std::array<uint8_t, 16>, std::shared_ptr<Inbox>> peers_ NIXL_GUARDED_BY(mutex_);
};

Result<std::unique_ptr<Backend>> createMemoryBackend(const Parameters& parameters,
                                                     PluginServices& services) {
    Options options;
    options.inlineLimit = parameters.size("inline_limit");
    options.delay =
        std::chrono::microseconds(static_cast<int64_t>(parameters.seconds("delay") * 1e6));
    options.maxRegions = parameters.integer("max_regions");
    options.maxPending = parameters.integer("max_pending");
    options.manual = parameters.flag("manual");
    return std::unique_ptr<Backend>(std::make_unique<MemoryBackend>(options, services));
}

const MemType kTypes[] = {MemType::DRAM};
const ParameterSpec kParameters[] = {
    {"inline_limit", ParameterType::SIZE, "64K", "copies up to this end inside post", 0},
    {"delay", ParameterType::DURATION, "0", "wait before each copy; then none is inline", 0, 60},
    {"manual", ParameterType::BOOL, "false", "copies wait for progress()"},
    {"max_regions", ParameterType::INTEGER, "1000000", "limit of registered regions", 1},
    {"max_pending", ParameterType::INTEGER, "1000000", "limit of transfers in progress", 1},
};

}  // namespace

const PluginTable& memoryBackendTable() {
    static const PluginTable table = [] {
        PluginTable made{};
        made.abi = kPluginAbi;
        made.kind = PluginKind::BACKEND;
        made.name = "MEMORY";
        made.version = "1";
        made.help = "test backend: copies within this process";
        made.memoryTypes = kTypes;
        made.memoryTypeCount = std::size(kTypes);
        made.parameters = kParameters;
        made.parameterCount = std::size(kParameters);
        made.createBackend = createMemoryBackend;
        return made;
    }();
    return table;
}

}  // namespace nixl::testkit
