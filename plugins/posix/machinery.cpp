// Starting and stopping engines; see machinery.h.
#include "machinery.h"

#include <algorithm>

namespace nixl::posix {

namespace {

constexpr double kStopSeconds = 5;  // for the kernel to give requests in flight back

}  // namespace

unsigned poolSize(int64_t wanted) {
    if (wanted > 0) {
        return static_cast<unsigned>(wanted);
    }
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    return static_cast<unsigned>(std::clamp(2 * processors, 4L, 16L));
}

Status Machinery::start(const EngineOptions& options,
                        std::optional<EngineKind> wished,
                        PluginServices& services) {
    shared.log = [&services](const std::string& text) { services.log(LogLevel::INFO, text); };
    EngineOrReason made = makeThreadEngine(options, poolScheduler);
    if (made.engine == nullptr) {
        return Status::backend(std::string(shared.plugin) + ": " + made.reason);
    }
    pool = std::move(made.engine);
    poolScheduler.setEngine(pool.get());
    shared.pool = &poolScheduler;
    shared.queue = &poolScheduler;
    Result<EngineChoice> choice =
        chooseEngine(wished ? &*wished : nullptr, options, queueScheduler);
    if (!choice.ok()) {
        return choice.status();
    }
    queue = std::move(choice.value().engine);
    queueScheduler.setEngine(queue.get());
    shared.queue = &queueScheduler;
    shared.small = queue->inlineQueue() != nullptr ? &small : nullptr;
    if (!choice.value().note.empty()) {
        services.log(choice.value().asWished ? LogLevel::INFO : LogLevel::WARN,
                     choice.value().note);
    }
    return {};
}

void Machinery::stop(std::unique_ptr<Machinery> machinery, PluginServices& services) {
    if (machinery == nullptr) {
        return;
    }
    Machinery& all = *machinery;
    if (getpid() != all.process) {  // forked: the threads are the parent's, nothing can be ended
        [[maybe_unused]] const Machinery* left = machinery.release();
        return;
    }
    all.shared.closing = true;
    bool stopped = all.small.stop(kStopSeconds);
    for (Engine* engine : {all.queue.get(), all.pool.get()}) {
        if (engine != nullptr) {
            (engine == all.queue.get() ? all.queueScheduler : all.poolScheduler).wake();
            stopped = engine->stop(kStopSeconds) && stopped;
        }
    }
    if (!stopped) {
        services.log(LogLevel::WARN, std::string(all.shared.plugin) +
                                         ": the kernel still holds requests (a hung disk?); "
                                         "leaving them to it");
        all.shared.log = [](const std::string&) {};
        // what the kernel still uses must stay
        [[maybe_unused]] const Machinery* left = machinery.release();
    }
}

}  // namespace nixl::posix
