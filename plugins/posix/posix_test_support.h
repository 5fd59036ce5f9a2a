// What the tests of the POSIX backend share: services that keep the log, completions to wait for,
// plans from plain lists. Owned by each test; one thread unless said otherwise.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "nixl/lane.h"
#include "nixl/plugin.h"

#include "posix_backend.h"
#include "testing/gpu.h"

namespace nixl::posix {

// Keeps what was logged; has nothing else.
class TestServices final : public PluginServices {
  public:
    void log(LogLevel level, std::string_view message) override {
        const std::lock_guard lock(mutex_);
        lines_.emplace_back(level, message);
    }
    bool logs(LogLevel /*level*/) const override { return true; }
    Reactor& reactor() override { std::abort(); }
    WorkPool& copyPool() override { std::abort(); }
    Devices& devices() override { return testkit::devices(); }
    void count(std::string_view /*name*/, uint64_t /*amount*/) override {}
    std::string_view agentName() const override { return "test"; }
    bool progressThreadWanted() const override { return true; }
    void deliverNotification(std::string_view /*from*/, std::string /*message*/) override {}
    void notifyPeer(const PlanPeer& /*peer*/,
                    std::string message,
                    std::function<void(Status)> done) override {
        deliverNotification("", std::move(message));
        done({});
    }
    void connectPeer(const PlanPeer& /*peer*/, std::function<void(Status)> done) override {
        done({});
    }
    Result<std::unique_ptr<Backend>> createLaneBackend(LaneBackendSpec /*spec*/) override {
        return Status::notSupported("no lanes in this test");
    }

    std::vector<std::pair<LogLevel, std::string>> lines() {
        const std::lock_guard lock(mutex_);
        return lines_;
    }
    // All messages of one level, joined.
    std::string text(LogLevel level) {
        std::string all;
        for (const auto& [line_level, line] : lines()) {
            all += line_level == level ? line + "\n" : "";
        }
        return all;
    }

  private:
    std::mutex mutex_;
    std::vector<std::pair<LogLevel, std::string>> lines_;
};

// A completion that can be waited for.
class TestCompletion final : public Completion {
  public:
    // Waits for the end; PENDING after `seconds`.
    XferState wait(double seconds = 60) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ended_; });
        return ended_ ? state() : XferState::PENDING;
    }

    Status status;                         // after the end
    std::vector<SegmentFailure> failures;  // after the end

  protected:
    void onFinal(XferState /*state*/, Status&& end, std::vector<SegmentFailure>&& failed) override {
        status = std::move(end);
        failures = std::move(failed);
    }
    void afterFinal() override {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool ended_ = false;
};

// Parameters of the table, with `given` over the defaults.
inline Parameters parametersWith(const std::map<std::string, std::string>& given) {
    Parameters parameters;
    for (size_t i = 0; i < kPluginTable.parameterCount; ++i) {
        const ParameterSpec& spec = kPluginTable.parameters[i];
        parameters.set(spec.name, spec.defaultValue, false);
    }
    for (const auto& [key, value] : given) {
        parameters.set(key, value, true);
    }
    return parameters;
}

// A plan and what it points to.
class TestPlan {
  public:
    explicit TestPlan(OpType op) { plan_.op = op; }

    void add(const void* memory, uint64_t size, BackendMemory* file, uint64_t offset) {
        files_.push_back({MemType::FILE, 0, INT64_MAX, 0, {}, file});
        PlanRun run;
        run.local = reinterpret_cast<uint64_t>(memory);
        run.remote = offset;
        run.size = size;
        run.planOffset = plan_.bytes;
        run.remoteRegion = static_cast<uint32_t>(files_.size() - 1);
        runs_.push_back(run);
        plan_.bytes += size;
    }
    void addRun(PlanRun run, BackendMemory* file) {
        files_.push_back({MemType::FILE, 0, INT64_MAX, 0, {}, file});
        run.planOffset = plan_.bytes;
        run.remoteRegion = static_cast<uint32_t>(files_.size() - 1);
        runs_.push_back(run);
        plan_.bytes += run.size * run.count;
    }
    void setMemory(BackendMemory* memory) { dram_.memory = memory; }
    const TransferPlan& get() {
        plan_.localRegions = {&dram_, 1};
        plan_.remoteRegions = files_;
        plan_.runs = runs_;
        plan_.segments = 0;
        for (const PlanRun& run : runs_) {
            plan_.segments += run.count;
        }
        plan_.descriptors = plan_.segments;
        return plan_;
    }

  private:
    PlanRegion dram_{MemType::DRAM, 0, UINT64_MAX, 0, {}, nullptr};
    std::vector<PlanRegion> files_;
    std::vector<PlanRun> runs_;
    TransferPlan plan_;
};

// A folder that goes away with its files.
class TempFolder {
  public:
    explicit TempFolder(const std::string& parent = std::filesystem::temp_directory_path()) {
        path_ = parent + "/nixl_posix_XXXXXX";
        if (mkdtemp(path_.data()) == nullptr) {
            std::abort();
        }
    }
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

}  // namespace nixl::posix
