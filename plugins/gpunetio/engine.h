// The queue pairs to all peers, and the thread that connects them, starts kernels and looks for
// their ends. Sleeps when nothing moves.
//
// Threads: public calls from any thread; `done` is called without a lock.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "nixl/services.h"

#include "messages.h"
#include "queue.h"

namespace nixl::gpunetio {

// An agent object: copies of what PlanPeer has.
struct Peer {
    std::string name;
    std::array<uint8_t, 16> incarnation{};
    bool self = false;

    PlanPeer plan() const { return {name, incarnation, self}; }
    auto operator<=>(const Peer& other) const = default;
};
Peer peerOf(const PlanPeer& peer);

// The pieces of a transfer between one GPU here and one there: prepared once, posted often.
struct Share {
    int gpu = 0;
    int peerGpu = 0;
    uint64_t bytes = 0;
    std::vector<Piece> list;
    std::unique_ptr<DeviceStaging> memory;  // Job, then the pieces
};

class Engine : public std::enable_shared_from_this<Engine> {
  public:
    using Done = std::function<void(Status)>;
    static Result<std::shared_ptr<Engine>> create(PluginServices& services,
                                                  std::unique_ptr<Cuda> cuda,
                                                  std::vector<std::shared_ptr<Device>> devices,
                                                  unsigned queues);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // The device of a GPU; null where it is none of this backend's.
    std::shared_ptr<Device> device(uint64_t gpu) const;
    std::string gpuNames() const;

    // Puts the pieces where the GPU sees them.
    Status prepare(Share& share);
    // `share` and `completion` must be valid until `done`, which is called once.
    void run(const Peer& peer, bool read, Share& share, const Completion& completion, Done done);
    // Ends what is pending with the peer by `why`.
    void losePeer(const Peer& peer, const Status& why);
    void receive(const Peer& from, std::string_view message);
    // Looks for ends, unless another thread does; never blocks.
    void help();
    void wake();
    // Ends everything; waits at most a second for kernels.
    void stop();

  private:
    struct Work {
        Share* share = nullptr;
        bool read = false;
        const Completion* completion = nullptr;
        Done done;
        std::optional<std::chrono::steady_clock::time_point> canceled;
    };
    struct Slot {
        std::unique_ptr<Queue> queue;
        std::optional<Work> work;
    };
    struct Link {
        uint64_t id = 0;
        Peer peer;
        int peerGpu = 0;
        std::shared_ptr<Device> device;
        bool up = false;
        bool retired = false;  // what runs goes on, nothing is started any more
        Status failed;         // ends what is left, then the link goes
        std::vector<Slot> slots;
        std::deque<Work> waiting;
    };
    struct End {
        Done done;
        Status status;
    };
    using Queues = std::vector<std::unique_ptr<Queue>>;
    using Served = std::map<std::pair<Peer, uint64_t>, Queues>;

    Engine(PluginServices& services,
           std::unique_ptr<Cuda> cuda,
           std::vector<std::shared_ptr<Device>> devices,
           unsigned queues)
        : services_(services),
          cuda_(std::move(cuda)),
          devices_(std::move(devices)),
          queueCount_(queues) {}
    void loop();
    bool step(std::vector<End>& ends);
    bool stepLink(Link& link, std::vector<End>& ends);
    bool stepSlot(Link& link, Slot& slot, std::vector<End>& ends);
    void heedCancel(Link& link, Slot& slot, Work& work);
    void close(const Link& link);
    void begin(Link& link, Slot& slot, Work work, std::vector<End>& ends);
    Status ended(const Link& link, const Work& work, const Job& job) const;
    void failLink(Link& link, const Status& why);
    std::shared_ptr<Link> linkTo(const Peer& peer, const Share& share);
    Status openLink(Link& link);
    void onMessage(const Peer& from, const LinkMessage& message);
    void serve(const Peer& from, const LinkMessage& message);
    Result<LinkMessage> accept(const Peer& from, const LinkMessage& message);
    void finishLink(const Peer& from, const LinkMessage& message);
    void send(const Peer& to, const LinkMessage& message);
    void post(std::function<void()> task);
    bool busy() const;
    Result<std::vector<QueueAddress>> makeQueues(const std::shared_ptr<Device>& device,
                                                 size_t count,
                                                 std::vector<std::unique_ptr<Queue>>& out) const;

    PluginServices& services_;
    const std::unique_ptr<Cuda> cuda_;
    const std::vector<std::shared_ptr<Device>> devices_;
    const unsigned queueCount_;
    std::thread thread_;

    std::mutex taskMutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> tasks_;  // guarded by taskMutex_
    bool woken_ = false;                       // likewise
    bool stop_ = false;                        // likewise

    std::mutex mutex_;  // of what follows
    std::map<uint64_t, std::shared_ptr<Link>> links_;
    Served served_;
    uint64_t nextLink_ = 1;
};

}  // namespace nixl::gpunetio
