// Opening cuFile's driver under a watchdog; see cufile.h. One attempt per process at a time, in a
// thread of its own, which is left behind where it does not come back.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>

#include <pthread.h>
#include <unistd.h>

#include "cufile_search.h"

namespace nixl::gds {

namespace {

// What one process knows of the driver. Never destroyed: a thread may be inside the library.
struct Opening {
    const pid_t process = getpid();
    const Opening* before = nullptr;   // the parent's
    std::atomic<bool> touched{false};  // the library's driver was asked to open
    std::mutex mutex;
    std::condition_variable changed;
    const CuFile* library = nullptr;
    bool running = false;  // a thread is inside driverOpen
    std::optional<CuFileError> outcome;
    std::optional<CuFileDriver> driver;
};

constinit std::atomic<Opening*> current_opening{nullptr};

// The state of this process: a thread of the parent may have held the parent's lock at the fork.
Opening& openingOfProcess() {
    Opening* now = current_opening.load(std::memory_order_acquire);
    while (now == nullptr || now->process != getpid()) {
        auto* const made = new Opening;
        made->before = now;
        if (current_opening.compare_exchange_strong(now, made)) {
            return *made;
        }
        delete made;
    }
    return *now;
}

// cuFileDriverOpen (1.17 to 1.20 at least) reads /proc/modules to its end, and never finds it
// where there is no such file.
bool openWouldSpin() {
    FILE* const modules = std::fopen("/proc/modules", "re");
    if (modules != nullptr) {
        std::fclose(modules);
    }
    return modules == nullptr;
}

void* openInThread(void* argument) {
    auto& opening = *static_cast<Opening*>(argument);
    pthread_setname_np(pthread_self(), "nixl-gds-open");
    const CuFileError outcome = opening.library->driverOpen();
    const std::lock_guard lock(opening.mutex);
    opening.outcome = outcome;
    opening.running = false;
    opening.changed.notify_all();
    return nullptr;
}

// Signals of the program are none of the library's threads' business.
int startOpening(Opening& opening) {
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread{};
    const int error = pthread_create(&thread, nullptr, &openInThread, &opening);
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    if (error == 0) {
        pthread_detach(thread);
    }
    return error;
}

CuFileDriver describeDriver(const CuFile& library) {
    CuFileDriver driver;
    driver.library = &library;
    CuFileProperties properties{};
    const CuFileError error = library.driverGetProperties(&properties);
    if (error.code != 0) {
        driver.mode =
            "compat mode: the driver's properties are not told (" + cuFileText(error) + ")";
        return driver;
    }
    driver.batchLimit = properties.maxBatch;
    if (properties.nvfsMajor > 0) {
        driver.direct = true;
        driver.mode = "direct: nvidia-fs " + std::to_string(properties.nvfsMajor) + "." +
                      std::to_string(properties.nvfsMinor);
    } else if ((properties.features & kCuFileFeatureP2p) != 0) {
        driver.direct = true;
        driver.mode = "direct where the file's device allows it: PCI P2PDMA, no nvidia-fs";
    } else {
        driver.mode = "compat mode: no nvidia-fs driver, bytes go through host memory";
    }
    return driver;
}

Status whyNotOpened(const CuFile& library, const CuFileError& outcome) {
    return Status::notSupported("the driver of " + library.path + " (" + library.version +
                                ") cannot be opened: " + cuFileText(outcome));
}

}  // namespace

Result<const CuFileDriver*> openCuFile(double seconds) {
    Opening& opening = openingOfProcess();
    for (const Opening* of = opening.before; of != nullptr; of = of->before) {
        if (of->touched.load()) {
            return Status::notAllowed("process " + std::to_string(opening.process) +
                                      " was forked from one that had opened cuFile's driver, "
                                      "which does not work in a child; start it with spawn");
        }
    }
    std::unique_lock lock(opening.mutex);
    if (opening.driver) {
        return &*opening.driver;
    }
    if (opening.library == nullptr) {
        Result<std::unique_ptr<CuFile>> found = findCuFile();
        if (!found.ok()) {
            return found.status();
        }
        opening.library = std::move(found).value().release();  // for the life of the process
    }
    const CuFile& library = *opening.library;
    if (!opening.running) {
        if (openWouldSpin()) {
            return Status::notSupported(
                "the driver of " + library.path + " (" + library.version +
                ") would never open: it reads /proc/modules, which cannot be read here");
        }
        opening.touched = true;
        opening.outcome.reset();
        if (const int error = startOpening(opening); error != 0) {
            return Status::backend(
                "starting a thread for cuFile's driver: " + cuFileText(-1, error), error);
        }
        opening.running = true;
    }
    if (!opening.changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                  [&opening] { return !opening.running; })) {
        return Status::timeout("the driver of " + library.path + " (" + library.version +
                               ") did not open in " + std::to_string(static_cast<int>(seconds)) +
                               " s (parameter driver_timeout); it is left trying");
    }
    const CuFileError outcome = opening.outcome.value_or(CuFileError{});
    if (outcome.code != 0) {
        return whyNotOpened(library, outcome);
    }
    if (!opening.driver) {
        opening.driver = describeDriver(library);
    }
    return &*opening.driver;
}

}  // namespace nixl::gds
