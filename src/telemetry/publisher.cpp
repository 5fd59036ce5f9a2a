// See publisher.h.
#include "telemetry/publisher.h"

#include <set>

#include <unistd.h>

#include "base/log.h"
#include "base/mutex.h"
#include "base/threads.h"
#include "telemetry/directory.h"
#include "telemetry/json.h"
#include "telemetry/metrics.h"

namespace nixl::telemetry {
namespace {

constexpr Metrics::Family kFailures{"nixl_telemetry_failures_total",
                                    "Times an exporter failed or its file could not be written.",
                                    NIXL_METRIC_COUNTER};

}  // namespace

// Held by the thread too: it may outlive the publisher.
struct Publisher::Work {
    Plan plan;
    std::vector<std::unique_ptr<Exporter>> exporters;
    std::set<std::string> told;  // failures are told once
    std::atomic<uint64_t> failures{0};

    Mutex mutex;
    std::condition_variable_any changed;
    bool stopping NIXL_GUARDED_BY(mutex) = false;
    bool published NIXL_GUARDED_BY(mutex) = false;
    bool ended NIXL_GUARDED_BY(mutex) = false;
    std::string endpoint NIXL_GUARDED_BY(mutex);

    std::string file() const {
        return "agent-" + std::to_string(getpid()) + "-" + plan.id.substr(0, 8) + ".json";
    }
    void check(const std::string& who, const Status& status) {
        if (!status.ok()) {
            failures.fetch_add(1, std::memory_order_relaxed);
            if (told.insert(who).second) {
                base::log(LogLevel::WARN,
                          "agent \"" + plan.agent + "\": " + status.message() + " (told once)");
            }
        }
    }
    void publish(bool last);
    void run();
    // Until `flag`, or `patience` is over. REQUIRES: mutex
    void await(const bool& flag, std::chrono::milliseconds patience) NIXL_NO_TSA {
        const auto end = std::chrono::steady_clock::now() + patience;
        while (!flag && changed.wait_until(mutex, end) == std::cv_status::no_timeout) {
        }
    }
    bool waitForNext() NIXL_NO_TSA;
    void awaitFirst() NIXL_NO_TSA;
};

void Publisher::Work::publish(bool last) {
    std::optional<AgentTelemetry> read = plan.read();
    if (!read.has_value()) {
        return;
    }
    {
        const MutexLock lock(mutex);
        read->endpoint = endpoint;
    }
    const std::string json = toJson(*read);
    if (!last) {
        check("file", replaceFile(plan.directory, file(), json + "\n"));
    }
    Metrics metrics(*read);
    metrics.add(kFailures, {}, static_cast<double>(failures.load(std::memory_order_relaxed)));
    const std::vector<nixl_metric>& all = metrics.view();
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const nixl_metrics given{std::chrono::duration<double>(now).count(), json.c_str(), all.data(),
                             all.size()};
    for (const std::unique_ptr<Exporter>& exporter : exporters) {
        check(exporter->name(), exporter->publish(given));
        const std::string where = exporter->endpoint();
        if (!where.empty()) {
            const MutexLock lock(mutex);
            endpoint = where;
        }
    }
}

// False: it is time to end.
bool Publisher::Work::waitForNext() {
    mutex.lock();
    await(stopping, plan.interval);
    const bool more = !stopping;
    mutex.unlock();
    return more;
}

// What can be seen of the agent can be seen at once, unless an exporter hangs.
void Publisher::Work::awaitFirst() {
    mutex.lock();
    await(published, std::chrono::seconds(1));
    mutex.unlock();
}

void Publisher::Work::run() {
    publish(false);
    publish(false);  // with the endpoint that is known now
    {
        const MutexLock lock(mutex);
        published = true;
        changed.notify_all();
    }
    while (waitForNext()) {
        publish(false);
    }
    publish(true);
    exporters.clear();
    unlink((plan.directory + "/" + file()).c_str());
    const MutexLock lock(mutex);
    ended = true;
    changed.notify_all();
}

Result<std::unique_ptr<Publisher>> Publisher::start(
    Plan plan, std::vector<std::unique_ptr<Exporter>> exporters) {
    auto work = std::make_shared<Work>();
    work->plan = std::move(plan);
    work->exporters = std::move(exporters);
    std::unique_ptr<Publisher> made(new Publisher(work));
    Result<std::thread> thread =
        base::startThread("nixl-telemetry", base::Priority::NORMAL, [work] { work->run(); });
    if (!thread.ok()) {
        return thread.status();
    }
    made->thread_ = std::move(thread).value();
    work->awaitFirst();
    return made;
}

void Publisher::stop(std::chrono::milliseconds patience) NIXL_NO_TSA {
    if (!thread_.joinable()) {
        return;
    }
    work_->mutex.lock();
    work_->stopping = true;
    work_->changed.notify_all();
    work_->await(work_->ended, patience);
    const bool ended = work_->ended;
    work_->mutex.unlock();
    if (ended) {
        thread_.join();
        return;
    }
    base::log(LogLevel::WARN, "agent \"" + work_->plan.agent +
                                  "\": a telemetry exporter did not return in time; its thread is "
                                  "left behind");
    thread_.detach();
}

Publisher::~Publisher() {
    stop(std::chrono::milliseconds(0));
}

std::string Publisher::endpoint() const {
    const MutexLock lock(work_->mutex);
    return work_->endpoint;
}

uint64_t Publisher::failures() const {
    return work_->failures.load(std::memory_order_relaxed);
}

}  // namespace nixl::telemetry
