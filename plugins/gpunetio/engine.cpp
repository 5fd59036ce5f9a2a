// See engine.h.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <system_error>

#include <pthread.h>
#include <signal.h>

namespace nixl::gpunetio {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::microseconds(20);  // between two looks at a kernel under way
// How long a canceled READ may take for what the adapter has.
constexpr auto kPatience = std::chrono::milliseconds(50);
constexpr auto kEndLimit = std::chrono::seconds(1);
constexpr char kLaneName[] = "gpunetio";

volatile Job& jobOf(const Share& share) {
    return *static_cast<volatile Job*>(share.memory->data());
}

// What the adapter has told (the InfiniBand specification's syndromes of a completion).
Status failureOf(const Peer& peer, uint32_t syndrome) {
    const std::string agent = "agent \"" + peer.name + "\": ";
    const std::string number = " (syndrome " + std::to_string(syndrome & 0xff) + ", vendor's " +
                               std::to_string(syndrome >> 8) + ")";
    switch (syndrome & 0xff) {
        case 0x05:
            return Status::disconnected(agent + "the connection was closed" + number);
        case 0x12:
        case 0x13:
            return Status::disconnected(
                agent + "its adapter refused: is the memory still registered there?" + number);
        case 0x15:
        case 0x16:
            return Status::disconnected(agent + "its adapter does not answer" + number);
        default:
            return Status::backend(agent + "the adapter failed" + number);
    }
}

}  // namespace

Peer peerOf(const PlanPeer& peer) {
    return {std::string(peer.name), peer.incarnation, peer.self};
}

Result<std::shared_ptr<Engine>> Engine::create(PluginServices& services,
                                               std::unique_ptr<Cuda> cuda,
                                               std::vector<std::shared_ptr<Device>> devices,
                                               unsigned queues) {
    std::shared_ptr<Engine> made(new Engine(services, std::move(cuda), std::move(devices), queues));
    sigset_t signals;
    sigset_t before;
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    Status status;
    try {
        made->thread_ = std::thread([engine = made.get()] { engine->loop(); });
    } catch (const std::system_error& error) {
        status = Status::backend(std::string("GPUNETIO: no thread: ") + error.what(),
                                 error.code().value());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    NIXL_RETURN_IF_ERROR(status);
    services.listenToLane(
        kLaneName, [weak = made->weak_from_this()](const PlanPeer& from, std::string_view message) {
            if (const auto engine = weak.lock(); engine != nullptr) {
                engine->receive(peerOf(from), message);
            }
        });
    return made;
}

Engine::~Engine() {
    stop();
}

std::shared_ptr<Device> Engine::device(uint64_t gpu) const {
    for (const auto& device : devices_) {
        if (static_cast<uint64_t>(device->options().gpu) == gpu) {
            return device;
        }
    }
    return nullptr;
}

std::string Engine::gpuNames() const {
    std::string names;
    for (const auto& device : devices_) {
        names += (names.empty() ? "" : " ") + std::to_string(device->options().gpu);
    }
    return names;
}

Status Engine::prepare(Share& share) {
    const uint64_t size = sizeof(Job) + share.list.size() * sizeof(Piece);
    auto memory = sharedMemory(devices_.front()->devices(), share.gpu, size);
    if (!memory.ok()) {
        return memory.status();
    }
    share.memory = std::move(memory).value();
    char* const at = static_cast<char*>(share.memory->data());
    std::memcpy(at + sizeof(Job), share.list.data(), share.list.size() * sizeof(Piece));
    Job job;
    job.pieces = reinterpret_cast<uint64_t>(at) + sizeof(Job);
    job.count = share.list.size();
    std::memcpy(at, &job, sizeof(job));
    share.list = {};
    return {};
}

// --- from other threads

void Engine::post(std::function<void()> task) {
    const std::lock_guard lock(taskMutex_);
    tasks_.push_back(std::move(task));
    wake_.notify_one();
}

void Engine::wake() {
    const std::lock_guard lock(taskMutex_);
    woken_ = true;
    wake_.notify_one();
}

void Engine::run(
    const Peer& peer, bool read, Share& share, const Completion& completion, Done done) {
    {
        const std::lock_guard lock(mutex_);
        linkTo(peer, share)->waiting.push_back({&share, read, &completion, std::move(done), {}});
    }
    wake();
}

void Engine::losePeer(const Peer& peer, const Status& why) {
    auto gone = std::make_shared<std::vector<Queues>>();
    {
        const std::lock_guard lock(mutex_);
        for (const auto& [id, link] : links_) {
            if (link->peer == peer) {
                failLink(*link, why);
            }
        }
        for (auto at = served_.begin(); at != served_.end();) {
            if (at->first.first != peer) {
                ++at;
                continue;
            }
            gone->push_back(std::move(at->second));
            at = served_.erase(at);
        }
    }
    post([gone] { gone->clear(); });  // takes a while
}

void Engine::receive(const Peer& from, std::string_view message) {
    std::optional<LinkMessage> known = decode(message);
    if (!known.has_value()) {
        services_.log(LogLevel::WARN, "agent \"" + from.name + "\" sent what is no message");
        return;
    }
    post([this, from, known = std::move(*known)] { onMessage(from, known); });
}

void Engine::help() {
    std::vector<End> ends;
    {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock.owns_lock()) {
            return;
        }
        step(ends);
    }
    for (End& one : ends) {
        one.done(std::move(one.status));
    }
}

void Engine::stop() {
    services_.listenToLane(kLaneName, nullptr);
    {
        const std::lock_guard lock(taskMutex_);
        if (stop_) {
            return;
        }
        stop_ = true;
        wake_.notify_one();
    }
    if (thread_.joinable()) {
        thread_.join();
    }
}

// --- the thread

void Engine::loop() {
    pthread_setname_np(pthread_self(), "nixl-gpunetio");
    std::optional<Clock::time_point> limit;
    while (true) {
        std::deque<std::function<void()>> tasks;
        bool moving = false;
        {
            const std::lock_guard lock(mutex_);
            moving = busy();
        }
        {
            std::unique_lock lock(taskMutex_);
            const auto ready = [this] { return woken_ || !tasks_.empty() || stop_; };
            moving ? static_cast<void>(wake_.wait_for(lock, kLook, ready))
                   : wake_.wait(lock, ready);
            tasks.swap(tasks_);
            woken_ = false;
            if (stop_ && !limit) {
                limit = Clock::now() + kEndLimit;
            }
        }
        for (const auto& task : tasks) {
            task();
        }
        std::vector<End> ends;
        {
            const std::lock_guard lock(mutex_);
            for (auto& [id, link] : links_) {
                if (limit) {
                    failLink(*link, Status::canceled("the agent has ended"));
                }
            }
            step(ends);
            moving = busy();
        }
        for (End& one : ends) {
            one.done(std::move(one.status));
        }
        if (limit && (!moving || Clock::now() > *limit)) {
            break;
        }
    }
    const std::lock_guard lock(mutex_);
    if (busy()) {
        // Kernels that do not end keep their queues, and this, until the process ends.
        static_cast<void>(new std::shared_ptr<Engine>(weak_from_this().lock()));
        auto* const kept = new std::map<uint64_t, std::shared_ptr<Link>>(std::move(links_));
        static_cast<void>(kept);
    }
    links_.clear();
    served_.clear();
}

bool Engine::busy() const {
    return std::any_of(links_.begin(), links_.end(), [](const auto& entry) {
        const Link& link = *entry.second;
        return !link.waiting.empty() || !link.failed.ok() ||
               std::any_of(link.slots.begin(), link.slots.end(),
                           [](const Slot& slot) { return slot.work.has_value(); });
    });
}

bool Engine::step(std::vector<End>& ends) {
    bool changed = false;
    std::vector<std::shared_ptr<Link>> all;  // stepping may make new ones
    for (const auto& [id, link] : links_) {
        all.push_back(link);
    }
    for (const auto& link : all) {
        changed = stepLink(*link, ends) || changed;
        const bool idle = std::none_of(link->slots.begin(), link->slots.end(),
                                       [](const Slot& slot) { return slot.work.has_value(); });
        if (!link->failed.ok() && idle) {
            links_.erase(link->id);
        } else if (link->retired && idle) {
            close(*link);
            links_.erase(link->id);
        }
    }
    return changed;
}

// Tells the peer that its queue pairs are not needed any more.
void Engine::close(const Link& link) {
    LinkMessage message;
    message.kind = LinkMessage::CLOSE;
    message.link = link.id;
    send(link.peer, message);
}

bool Engine::stepLink(Link& link, std::vector<End>& ends) {
    bool changed = false;
    for (auto work = link.waiting.begin(); work != link.waiting.end();) {
        if (!link.failed.ok() || work->completion->cancelRequested()) {
            Status why = link.failed.ok() ? Status::canceled("canceled") : link.failed;
            ends.push_back({std::move(work->done), std::move(why)});
            work = link.waiting.erase(work);
            changed = true;
        } else {
            ++work;
        }
    }
    for (Slot& slot : link.slots) {
        changed = stepSlot(link, slot, ends) || changed;
    }
    while (link.retired && link.failed.ok() && !link.waiting.empty()) {
        Work work = std::move(link.waiting.front());
        link.waiting.pop_front();
        linkTo(link.peer, *work.share)->waiting.push_back(std::move(work));
    }
    return changed;
}

bool Engine::stepSlot(Link& link, Slot& slot, std::vector<End>& ends) {
    bool changed = false;
    if (slot.work.has_value()) {
        volatile Job& job = jobOf(*slot.work->share);
        if (job.ended == 0) {
            heedCancel(link, slot, *slot.work);
            return false;
        }
        std::atomic_thread_fence(std::memory_order_acquire);
        Job seen;
        std::memcpy(&seen, slot.work->share->memory->data(), sizeof(seen));
        Status status = ended(link, *slot.work, seen);
        ends.push_back({std::move(slot.work->done), status});
        slot.work.reset();
        if (seen.syndrome != 0 && link.failed.ok() && !link.retired) {
            failLink(link, status);
            close(link);
        }
        changed = true;
    }
    if (link.up && !link.retired && link.failed.ok() && !link.waiting.empty()) {
        Work next = std::move(link.waiting.front());
        link.waiting.pop_front();
        begin(link, slot, std::move(next), ends);
        changed = true;
    }
    return changed;
}

// What is posted cannot be taken back. A READ that does not end loses its queue pair: then no byte
// of this side's memory changes any more.
void Engine::heedCancel(Link& link, Slot& slot, Work& work) {
    if (!work.completion->cancelRequested()) {
        return;
    }
    jobOf(*work.share).stop = 1;
    const auto now = Clock::now();
    if (!work.canceled) {
        work.canceled = now;
    } else if (work.read && !link.retired && now > *work.canceled + kPatience) {
        link.retired = true;
        slot.queue->fail();
    }
}

void Engine::begin(Link& link, Slot& slot, Work work, std::vector<End>& ends) {
    volatile Job& job = jobOf(*work.share);
    job.queue = slot.queue->address();
    job.opcode = work.read ? kOpRead : kOpWrite;
    job.stop = 0;
    job.finished = 0;
    job.syndrome = 0;
    job.ended = 0;
    std::atomic_thread_fence(std::memory_order_release);
    Status status = link.device->launch(static_cast<Job*>(work.share->memory->data()));
    if (!status.ok()) {
        ends.push_back({std::move(work.done), std::move(status)});
        return;
    }
    slot.work = std::move(work);
}

Status Engine::ended(const Link& link, const Work& work, const Job& job) const {
    if (!link.failed.ok()) {
        return link.failed;
    }
    if (job.syndrome != 0 && work.completion->cancelRequested()) {
        return Status::canceled("canceled");
    }
    if (job.syndrome != 0) {
        return failureOf(link.peer, job.syndrome);
    }
    return job.finished == job.count            ? Status()
           : work.completion->cancelRequested() ? Status::canceled("canceled")
                                                : Status::backend("GPUNETIO: a kernel ended early");
}

void Engine::failLink(Link& link, const Status& why) {
    if (!link.failed.ok()) {
        return;
    }
    link.failed = why;
    link.up = false;
    for (Slot& slot : link.slots) {
        if (slot.work.has_value()) {
            jobOf(*slot.work->share).stop = 1;
        }
        slot.queue->fail();
    }
}

// --- links

// REQUIRES: mutex_ is held
std::shared_ptr<Engine::Link> Engine::linkTo(const Peer& peer, const Share& share) {
    for (const auto& [id, link] : links_) {
        if (link->failed.ok() && !link->retired && link->peer == peer &&
            link->peerGpu == share.peerGpu && link->device->options().gpu == share.gpu) {
            return link;
        }
    }
    auto link = std::make_shared<Link>();
    link->id = nextLink_++;
    link->peer = peer;
    link->peerGpu = share.peerGpu;
    link->device = device(static_cast<uint64_t>(share.gpu));
    links_[link->id] = link;
    post([this, link] {
        if (const Status status = openLink(*link); !status.ok()) {
            const std::lock_guard lock(mutex_);
            failLink(*link, status);
        }
    });
    return link;
}

Result<std::vector<QueueAddress>> Engine::makeQueues(
    const std::shared_ptr<Device>& device,
    size_t count,
    std::vector<std::unique_ptr<Queue>>& out) const {
    std::vector<QueueAddress> addresses;
    for (size_t i = 0; i < count; ++i) {
        Result<std::unique_ptr<Queue>> queue = Queue::create(device);
        if (!queue.ok()) {
            return queue.status();
        }
        addresses.push_back({queue.value()->number(), device->gid(), device->lid()});
        out.push_back(std::move(queue).value());
    }
    return addresses;
}

// Makes this side's queues and asks for the other's.
Status Engine::openLink(Link& link) {
    std::vector<std::unique_ptr<Queue>> queues;
    Result<std::vector<QueueAddress>> addresses = makeQueues(link.device, queueCount_, queues);
    if (!addresses.ok()) {
        return addresses.status();
    }
    LinkMessage message;
    message.kind = LinkMessage::CONNECT;
    message.link = link.id;
    message.gpu = static_cast<uint32_t>(link.peerGpu);
    message.queues = std::move(addresses).value();
    {
        const std::lock_guard lock(mutex_);
        for (auto& queue : queues) {
            link.slots.push_back({std::move(queue), std::nullopt});
        }
    }
    services_.sendLaneMessage(
        link.peer.plan(), kLaneName, encode(message),
        [weak = weak_from_this(), id = link.id](const Status& status) {
            if (const auto engine = weak.lock(); engine != nullptr && !status.ok()) {
                const std::lock_guard lock(engine->mutex_);
                if (const auto found = engine->links_.find(id); found != engine->links_.end()) {
                    engine->failLink(*found->second, status);
                }
                engine->wake();
            }
        });
    return {};
}

void Engine::send(const Peer& to, const LinkMessage& message) {
    services_.sendLaneMessage(to.plan(), kLaneName, encode(message), [](const Status&) {});
}

void Engine::onMessage(const Peer& from, const LinkMessage& message) {
    switch (message.kind) {
        case LinkMessage::CONNECT:
            serve(from, message);
            break;
        case LinkMessage::CLOSE: {
            const std::lock_guard lock(mutex_);
            served_.erase({from, message.link});
            break;
        }
        default:
            finishLink(from, message);
    }
}

void Engine::serve(const Peer& from, const LinkMessage& message) {
    Result<LinkMessage> answer = accept(from, message);
    if (answer.ok()) {
        return send(from, answer.value());
    }
    LinkMessage refusal;
    refusal.kind = LinkMessage::REFUSE;
    refusal.link = message.link;
    refusal.text = answer.status().message();
    send(from, refusal);
}

// The queue pairs that the peer's are connected to. Nothing is ever posted here.
Result<LinkMessage> Engine::accept(const Peer& from, const LinkMessage& message) {
    const std::shared_ptr<Device> device = this->device(message.gpu);
    if (device == nullptr) {
        return Status::notFound("it does not use its GPU " + std::to_string(message.gpu) +
                                "; gpu_devices there are: " + gpuNames());
    }
    std::vector<std::unique_ptr<Queue>> queues;
    Result<std::vector<QueueAddress>> addresses = makeQueues(device, message.queues.size(), queues);
    if (!addresses.ok()) {
        return addresses.status();
    }
    for (size_t i = 0; i < queues.size(); ++i) {
        NIXL_RETURN_IF_ERROR(queues[i]->connect(message.queues[i]));
    }
    LinkMessage answer;
    answer.kind = LinkMessage::ACCEPT;
    answer.link = message.link;
    answer.queues = std::move(addresses).value();
    const std::lock_guard lock(mutex_);
    served_[{from, message.link}] = std::move(queues);
    return answer;
}

// The peer's answer to what openLink asked.
void Engine::finishLink(const Peer& from, const LinkMessage& message) {
    const std::lock_guard lock(mutex_);
    const auto found = links_.find(message.link);
    if (found == links_.end() || found->second->peer != from || found->second->up) {
        return;
    }
    Link& link = *found->second;
    Status status;
    if (message.kind == LinkMessage::REFUSE) {
        status = Status::disconnected("agent \"" + from.name + "\": " + message.text);
    } else if (message.queues.size() != link.slots.size()) {
        status = Status::disconnected("agent \"" + from.name + "\" answered with " +
                                      std::to_string(message.queues.size()) + " queue pairs, not " +
                                      std::to_string(link.slots.size()));
    }
    for (size_t i = 0; status.ok() && i < link.slots.size(); ++i) {
        status = link.slots[i].queue->connect(message.queues[i]);
    }
    link.up = status.ok();
    if (!status.ok()) {
        failLink(link, status);
    }
}

}  // namespace nixl::gpunetio
