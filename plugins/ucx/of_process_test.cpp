// A fork while another thread holds what belongs to the process.
#include "of_process.h"

#include <future>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::ucx {
namespace {

TEST(OfProcess, AForkedChildHasItsOwn) {
    static OfProcess<int> number;
    number.hold().value = 7;
    std::promise<void> inside;
    std::promise<void> leave;
    std::thread holder([&] {
        const auto held = number.hold();
        held.value = 8;
        inside.set_value();
        leave.get_future().wait();
    });
    inside.get_future().wait();
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(number.hold().value == 0 ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    leave.set_value();
    holder.join();
    EXPECT_EQ(number.hold().value, 8) << "the parent's is as it was";
}

}  // namespace
}  // namespace nixl::ucx
