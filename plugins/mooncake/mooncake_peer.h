// One peer, and the posts with it: submitted to an engine within the engine's limits, looked at
// until they have ended. Owned by the worker and by transfers. Thread-safe; calls that end posts
// run their `done` without a lock.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "entry_cursor.h"
#include "mooncake_engine.h"

namespace nixl::mooncake {

// Of the requests that the engine has at a time for one peer: its tcp transport queues so many, and
// having refused more fails what follows.
inline constexpr size_t kMostRequests = 1024;
inline constexpr uint64_t kMostBytes = 32 << 20;  // what a cancel waits for
inline constexpr uint64_t kPiece = 4 << 20;       // a request has one of the peer's connections

// One post. What is given must be valid until `done`, which is called once.
struct MooncakeJob {
    bool read = false;
    uint64_t bytes = 0;
    std::span<const PlanRun> runs;
    const Cuts* localCuts = nullptr;
    const Cuts* remoteCuts = nullptr;
    std::shared_ptr<Completion> completion;
    std::function<void(Status, std::vector<SegmentFailure>)> done;
};

// The engine that begins transfers; another one is made where one has failed. Thread-safe.
class Asking {
  public:
    using Maker = std::function<Result<std::shared_ptr<Engine>>()>;
    using EnginePtr = std::shared_ptr<Engine>;
    // `own`: what `maker` gives is for this alone, and may be ended.
    Asking(Maker maker, bool own) : maker_(std::move(maker)), own_(own) {}

    // May block: makes one where there is none.
    Result<EnginePtr> get();
    EnginePtr existing();
    bool current(const EnginePtr& engine) { return existing() == engine; }
    // Nothing more is begun with it. `force`: it is ended though it has work.
    void retire(const EnginePtr& engine, bool force);
    // Those that nobody uses any more, and those that are to be ended by force.
    struct Retired {
        std::vector<EnginePtr> unused;
        std::vector<EnginePtr> forced;
        bool more = false;  // some are still used
    };
    Retired takeRetired();
    // One of them that could not be ended yet.
    void retireAgain(const EnginePtr& engine);

  private:
    const Maker maker_;
    const bool own_;
    std::mutex making_;
    std::mutex mutex_;  // guards what follows
    EnginePtr engine_;
    std::vector<std::pair<EnginePtr, bool>> retired_;  // and whether by force
};

class MooncakePeer : public std::enable_shared_from_this<MooncakePeer> {
  public:
    struct Active;
    using ActivePtr = std::shared_ptr<Active>;

    MooncakePeer(std::string name,
                 std::string segment,
                 std::shared_ptr<Asking> asking,
                 std::function<void(const std::shared_ptr<MooncakePeer>&)> busy)
        : name_(std::move(name)),
          segment_(std::move(segment)),
          asking_(std::move(asking)),
          busy_(std::move(busy)) {}
    MooncakePeer(const MooncakePeer&) = delete;
    MooncakePeer& operator=(const MooncakePeer&) = delete;

    const std::string& segment() const { return segment_; }
    // Takes a post; it waits for `begin`, which comes when the session is up.
    ActivePtr add(MooncakeJob job);
    void begin(const ActivePtr& active, const Status& session);
    // Ends what it can, and tells the users of the rest.
    void lose(const Status& why);
    // Moves its posts on, without waiting. Whether something has happened.
    bool advance();
    bool idle() const { return count_.load(std::memory_order_acquire) == 0; }
    // Ends what it can, and has the engine ended for the rest.
    void leave(const Status& why);
    // Its engine has been ended by force: what it had and who is not to blame begins again.
    void engineEnded(const std::shared_ptr<Engine>& engine);

  private:
    using Clock = std::chrono::steady_clock;
    struct Batch;
    using Calls = std::vector<std::function<void()>>;
    enum class Link : uint8_t { CLOSED, OPENING, OPEN };

    bool step(Calls& calls);
    bool look(Active& active);
    void giveUp(Active& active, bool moved);
    bool lookAt(Active& active, Batch& batch);
    bool submit(Active& active);
    std::vector<EngineRequest> take(Active& active, Batch& batch) const;
    bool over(Active& active);
    bool decided(Active& active);
    void finish(const ActivePtr& active, Calls& calls);
    void checkLink();
    void open();
    void opened(const std::shared_ptr<Engine>& engine, const Result<int32_t>& segment);
    static void run(const Calls& calls);

    // How long the session has to tell that the peer is lost, where the engine failed first.
    static constexpr auto kSessionTells = std::chrono::milliseconds(200);
    // How long nothing of a post may end that nobody wants any more.
    static constexpr auto kGiveUp = std::chrono::seconds(2);

    const std::string name_;
    const std::string segment_;
    const std::shared_ptr<Asking> asking_;
    const std::function<void(const std::shared_ptr<MooncakePeer>&)> busy_;
    std::atomic<size_t> count_{0};  // posts

    std::mutex mutex_;  // guards what follows
    std::deque<ActivePtr> active_;
    Link link_ = Link::CLOSED;
    std::shared_ptr<Engine> engine_;
    int32_t handle_ = -1;
    size_t requests_ = 0;  // that the engine has
    uint64_t bytes_ = 0;
};

}  // namespace nixl::mooncake
