// GDS: cuFile's batches. One thread fills and submits them, a second waits for those that
// submitting did not finish. What a batch does not tell for certain is done again by plain calls,
// each of which has a result of its own: cuFile refuses a batch as a whole for one entry, and
// forgets the other entries' events when one of them fails (their bytes may still be on the way;
// ending the batch waits for them). See engine.h.
#include <algorithm>
#include <chrono>
#include <deque>
#include <thread>

#include "engine.h"

namespace nixl::gds {

namespace {

constexpr uint64_t kBatchBytes = 64 << 20;  // what a cancel may have to wait for, each
constexpr long kWaitNanoseconds = 100'000'000;
constexpr auto kPause = std::chrono::milliseconds(1);  // where cuFile does not wait itself

// A batch of cuFile with its requests.
struct Batch {
    void* handle = nullptr;
    std::vector<Request> requests;
    std::vector<bool> ended;  // the event has come
    size_t left = 0;
    int device = -1;  // of all its requests
    std::chrono::steady_clock::time_point heard;
};

class BatchEngine final : public Engine {
  public:
    BatchEngine(const CuFileDriver& driver, PluginServices& services, const EngineOptions& options)
        : library_(*driver.library), services_(services), options_(options) {}
    ~BatchEngine() override {
        for (const auto& batch : all_) {
            if (batch->handle != nullptr) {
                library_.batchDestroy(batch->handle);
            }
        }
    }

    std::string start() override {
        int error = threads_.start("nixl-gds-submit", [this] { submitLoop(); });
        if (error == 0) {
            error = threads_.start("nixl-gds-reap", [this] { reapLoop(); });
        }
        return error == 0 ? std::string() : "starting a thread: " + errnoText(error);
    }

    void post(Job& job) override { queue_.push(&job); }

    bool stop(double seconds) override {
        queue_.stop();
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        changed_.notify_all();
        return threads_.join(seconds);
    }

    std::string describe() const override {
        return "batches of up to " + std::to_string(options_.batchRequests) + " requests";
    }

  private:
    void submitLoop();
    void reapLoop();
    Batch* takeFree();
    void giveBack(Batch* batch);
    bool launch(Batch& batch);
    void openFiles(Batch& batch);
    bool submit(Batch& batch);
    bool reap(Batch& batch, bool wait);
    void take(Batch& batch, const CuFileEvent& event);
    void oneByOne(Batch& batch);

    const CuFile& library_;
    PluginServices& services_;
    const EngineOptions options_;
    JobQueue queue_;
    std::vector<Request> drawn_;          // the submitting thread's
    std::vector<CuFileRequest> entries_;  // the submitting thread's
    std::mutex mutex_;                    // guards what follows
    std::condition_variable changed_;
    std::vector<std::unique_ptr<Batch>> all_;
    std::vector<Batch*> free_;
    std::deque<Batch*> flying_;  // the oldest first
    bool stop_ = false;
    bool submitterEnded_ = false;
    Threads threads_;
};

// Waits for one where there are as many as there may be.
Batch* BatchEngine::takeFree() {
    std::unique_lock lock(mutex_);
    if (free_.empty() && all_.size() < options_.batches) {
        all_.push_back(std::make_unique<Batch>());
        free_.push_back(all_.back().get());
    }
    changed_.wait(lock, [this] { return !free_.empty(); });
    Batch* const batch = free_.back();
    free_.pop_back();
    return batch;
}

void BatchEngine::giveBack(Batch* batch) {
    {
        const std::lock_guard lock(mutex_);
        free_.push_back(batch);
    }
    changed_.notify_all();
}

void BatchEngine::submitLoop() {
    for (;;) {
        Batch* const batch = takeFree();
        if (drawn_.empty() && !queue_.draw(drawn_, {options_.batchRequests, kBatchBytes, 1})) {
            giveBack(batch);
            break;
        }
        if (!launch(*batch)) {
            giveBack(batch);
            continue;
        }
        {
            const std::lock_guard lock(mutex_);
            flying_.push_back(batch);
        }
        changed_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    submitterEnded_ = true;
    changed_.notify_all();
}

void BatchEngine::reapLoop() {
    for (;;) {
        Batch* batch = nullptr;
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return !flying_.empty() || (stop_ && submitterEnded_); });
            if (flying_.empty()) {
                return;
            }
            batch = flying_.front();
            flying_.pop_front();
        }
        {
            const GpuScope gpu(services_, batch->device);  // was there when it was submitted
            while (!reap(*batch, true)) {
            }
        }
        giveBack(batch);
    }
}

// Moves to the batch what was drawn, up to where no more files may be open; the rest is for the
// next one. A file that cannot be opened fails its own requests.
void BatchEngine::openFiles(Batch& batch) {
    batch.requests.clear();
    size_t taken = 0;
    for (Request& request : drawn_) {
        const Job::Opened opened = request.job->open(request, batch.requests.empty());
        if (opened == Job::Opened::LATER) {
            break;
        }
        ++taken;
        if (opened == Job::Opened::YES) {
            batch.requests.push_back(request);
        }
    }
    drawn_.erase(drawn_.begin(), drawn_.begin() + static_cast<ptrdiff_t>(taken));
}

// Submits the next requests; false where everything of them is over already.
bool BatchEngine::launch(Batch& batch) {
    openFiles(batch);
    if (batch.requests.empty()) {
        return false;
    }
    batch.device = batch.requests.front().device;
    const GpuScope gpu(services_, batch.device);
    if (!gpu.status().ok()) {
        for (Request& request : batch.requests) {
            request.job->fail(request, gpu.status().message(), 0);
        }
        return false;
    }
    return submit(batch) && !reap(batch, false);
}

// False where everything of it is over.
bool BatchEngine::submit(Batch& batch) {
    batch.left = batch.requests.size();
    batch.ended.assign(batch.left, false);
    batch.heard = std::chrono::steady_clock::now();
    CuFileError error;
    if (batch.handle == nullptr) {
        error = library_.batchSetUp(&batch.handle, options_.batchRequests);
        if (error.code != 0) {
            batch.handle = nullptr;
        }
    }
    if (error.code == 0) {
        entries_.clear();
        for (size_t i = 0; i < batch.requests.size(); ++i) {
            const Request& request = batch.requests[i];
            CuFileRequest entry;
            entry.io = {reinterpret_cast<void*>(request.memory), static_cast<off_t>(request.offset),
                        0, request.size};
            entry.file = request.handle;
            entry.op = request.job->op() == OpType::WRITE ? CuFileOp::WRITE : CuFileOp::READ;
            entry.cookie = reinterpret_cast<void*>(i + 1);
            entries_.push_back(entry);
        }
        error = library_.batchSubmit(batch.handle, static_cast<unsigned>(entries_.size()),
                                     entries_.data(), 0);
    }
    if (error.code == 0) {
        return true;
    }
    services_.count("batches_refused", 1);
    oneByOne(batch);
    return false;
}

void BatchEngine::take(Batch& batch, const CuFileEvent& event) {
    const size_t index = reinterpret_cast<size_t>(event.cookie) - 1;
    if (index >= batch.requests.size() || batch.ended[index]) {
        return;  // not filled in
    }
    Request& request = batch.requests[index];
    const auto moved = static_cast<int64_t>(event.result);
    if (event.status != kCuFileComplete || moved < 0) {
        return;  // the plain call will tell why
    }
    batch.ended[index] = true;
    --batch.left;
    request.done = std::min(static_cast<uint64_t>(moved), request.size);
    if (request.done < request.size) {
        perform(library_, request);  // goes on where it stopped
    } else {
        request.job->succeed(request);
    }
}

// Takes the events that there are. True when everything of the batch is over.
bool BatchEngine::reap(Batch& batch, bool wait) {
    std::vector<CuFileEvent> events(batch.left);
    auto count = static_cast<unsigned>(batch.left);
    timespec timeout{0, wait ? kWaitNanoseconds : 0};
    const CuFileError error =
        library_.batchGetStatus(batch.handle, wait ? count : 0, &count, events.data(), &timeout);
    const size_t before = batch.left;
    bool failed = error.code != 0;
    for (size_t i = 0; i < std::min<size_t>(count, events.size()); ++i) {
        failed = failed || events[i].status != kCuFileComplete;
        take(batch, events[i]);
    }
    if (batch.left == 0) {
        return true;
    }
    const auto now = std::chrono::steady_clock::now();
    batch.heard = batch.left < before ? now : batch.heard;
    if (!failed && now - batch.heard < std::chrono::duration<double>(options_.batchSeconds)) {
        if (wait && batch.left == before) {
            std::this_thread::sleep_for(kPause);
        }
        return false;
    }
    services_.count("batches_failed", 1);
    oneByOne(batch);
    return true;
}

// The batch's end waits for what is on the way; then what has no event is done again.
void BatchEngine::oneByOne(Batch& batch) {
    if (batch.handle != nullptr) {
        library_.batchDestroy(batch.handle);
        batch.handle = nullptr;
    }
    for (size_t i = 0; i < batch.requests.size(); ++i) {
        if (!batch.ended[i]) {
            batch.ended[i] = true;
            perform(library_, batch.requests[i]);
        }
    }
    batch.left = 0;
}

}  // namespace

std::unique_ptr<Engine> makeBatchEngine(const CuFileDriver& driver,
                                        PluginServices& services,
                                        const EngineOptions& options) {
    return std::make_unique<BatchEngine>(driver, services, options);
}

}  // namespace nixl::gds
