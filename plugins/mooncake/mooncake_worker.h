// What looks after the posts of a lane while no caller does: a thread that sleeps when there are
// none. The engine tells nobody of an end, so the thread looks from time to time. Thread-safe.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "mooncake_peer.h"

namespace nixl::mooncake {

class MooncakeWorker : public std::enable_shared_from_this<MooncakeWorker> {
  public:
    using PeerPtr = std::shared_ptr<MooncakePeer>;

    explicit MooncakeWorker(std::shared_ptr<Asking> asking) : asking_(std::move(asking)) {}
    ~MooncakeWorker();
    MooncakeWorker(const MooncakeWorker&) = delete;
    MooncakeWorker& operator=(const MooncakeWorker&) = delete;

    Status start();
    // Joins the thread, and ends the engines it has.
    void stop();

    // A peer, by its agent's name and incarnation; made where there is none.
    PeerPtr peer(const std::string& key, const std::string& name, const std::string& segment);
    PeerPtr find(const std::string& key);
    void forget(const std::string& key);
    std::vector<PeerPtr> peers();

  private:
    using Clock = std::chrono::steady_clock;
    void busy(const PeerPtr& peer);
    void loop();
    bool look();
    void endRetired();
    void rest(bool moved);

    // Between two looks: soon after the last end, later where nothing happens for long.
    static constexpr auto kLeastRest = std::chrono::microseconds(50);
    static constexpr auto kMostRest = std::chrono::microseconds(1000);
    // Without work it looks a while longer: who posts need not wake it then.
    static constexpr auto kStayAwake = std::chrono::milliseconds(50);

    const std::shared_ptr<Asking> asking_;
    std::thread thread_;

    std::mutex mutex_;  // guards what follows
    std::condition_variable changed_;
    std::map<std::string, PeerPtr> peers_;
    std::map<std::string, std::weak_ptr<MooncakePeer>> former_;
    std::vector<PeerPtr> busy_;
    bool asleep_ = false;
    bool stop_ = false;

    // Worker's thread only.
    std::chrono::microseconds rest_ = kLeastRest;
    Clock::time_point lastBusy_;
    bool retiring_ = false;
};

}  // namespace nixl::mooncake
