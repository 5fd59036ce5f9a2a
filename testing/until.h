// Waiting in tests: for a condition, with a deadline that only what is broken reaches. Thread-safe.
#pragma once

#include <chrono>
#include <thread>

namespace nixl::testkit {

// True as soon as `met` is; false when it is not within `patience`.
template <typename Condition>
bool eventually(Condition&& met, std::chrono::milliseconds patience = std::chrono::seconds(30)) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!met()) {
        if (std::chrono::steady_clock::now() > end) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // sleeps: between two looks
    }
    return true;
}

}  // namespace nixl::testkit
