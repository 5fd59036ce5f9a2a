// What the checks of the conformance suite are written with: a backend with its services, regions
// and transfers over it. Owned by one test; its calls are for one thread unless told otherwise.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "nixl/backend.h"

#include "testing/completion.h"
#include "testing/conformance.h"
#include "testing/services.h"

namespace nixl::testkit {

inline constexpr std::chrono::milliseconds kPatience{30'000};

// One backend as the agent would hold it.
class Side {
  public:
    // Fails the test, and has no backend, where it cannot be created.
    Side(const Subject& subject,
         const std::string& agent_name,
         const std::map<std::string, std::string>& more_parameters = {});

    TestServices& services() { return *services_; }
    Backend& backend() { return *backend_; }
    explicit operator bool() const { return backend_ != nullptr; }
    PlanPeer peer(bool self) const;

  private:
    std::unique_ptr<TestServices> services_;
    std::unique_ptr<Backend> backend_;
};

// A buffer registered with a side.
class Registered {
  public:
    Registered(Side& side, std::unique_ptr<Buffer> buffer);
    Buffer& buffer() { return *buffer_; }
    const Status& status() const { return status_; }
    bool ok() const { return status_.ok(); }
    PlanRegion region() const;
    BackendMemory* memory() { return memory_.get(); }

  private:
    std::unique_ptr<Buffer> buffer_;
    MemoryRegion region_;
    std::unique_ptr<BackendMemory> memory_;
    Status status_;
    uint64_t id_ = 0;
};

struct Piece {
    uint64_t local = 0;  // offsets in the buffers
    uint64_t remote = 0;
    uint64_t size = 0;
};

// A plan with all that it refers to, and the transfer made from it.
class Job {
  public:
    Job(OpType op, const PlanRegion& local, const PlanRegion& remote, const PlanPeer& peer);
    Job(Job&&) = delete;

    Job& add(const Piece& piece);
    Job& addRun(const PlanRun& run);  // addresses relative to the regions
    // Once, after the pieces.
    Status prepare(Backend& backend);
    const TransferPlan& plan() const { return plan_; }
    BackendTransfer& transfer() { return *transfer_; }
    bool prepared() const { return transfer_ != nullptr; }
    void release() { transfer_.reset(); }

    // Posts, and gives the completion; null and a failed test where post refuses.
    std::shared_ptr<TestCompletion> post(std::string_view notification = {}, bool notify = false);
    // What a polling caller does for a pending transfer.
    void progress(Backend& backend);
    // Until final, helping as a polling caller would; a failed test when it takes for ever.
    bool wait(Backend& backend, TestCompletion& completion);
    // All three; true where it ended DONE, else the test has failed.
    bool run(Backend& backend);

  private:
    std::string peerName_;
    PlanRegion localRegion_;
    PlanRegion remoteRegion_;
    std::vector<PlanRun> runs_;
    TransferPlan plan_;
    std::unique_ptr<BackendTransfer> transfer_;
};

// What a check works with: the subject, one side, and its two buffers where it wants them.
class Bench {
  public:
    explicit Bench(const Subject& subject) : subject_(subject) {}

    const Subject& subject() const { return subject_; }
    // Created at the first use; null (and a failed test) where that fails.
    Side* side();
    // A side of its own, with more parameters.
    std::unique_ptr<Side> newSide(const std::string& agent_name,
                                  const std::map<std::string, std::string>& more = {});
    std::unique_ptr<Registered> local(Side& side, uint64_t size);
    std::unique_ptr<Registered> remote(Side& side, uint64_t size);
    // `size` rounded up to what the backend can move.
    uint64_t rounded(uint64_t size) const;
    const PluginTable* table();

  private:
    const Subject& subject_;
    std::unique_ptr<Side> side_;
};

// A check: its name in the test, whom it concerns, and what it does.
struct Check {
    const char* name;
    enum class For : uint8_t { ALL, STORAGE, NETWORK } whom;
    void (*run)(Bench& bench);
    bool forLimits = false;  // only where the subject declares some
};

// The checks, by file.
std::vector<Check> transferChecks();
std::vector<Check> endingChecks();
std::vector<Check> lifetimeChecks();
std::vector<Check> agentChecks();

// The table that a subject means; null and a failed test where it cannot be loaded.
const PluginTable* tableOf(const Subject& subject);

}  // namespace nixl::testkit
