// Opening the CUDA driver, against a stand-in.
#include "cuda.h"

#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::posix {
namespace {

// In a process of its own: this thread forks while another is inside the driver. Gives 0 where the
// child gets a driver of its own.
int forkWhileOpening() {
    int inside[2];
    int leave[2];
    if (pipe(inside) != 0 || pipe(leave) != 0) {
        return 2;
    }
    const std::string waits = std::to_string(inside[1]) + " " + std::to_string(leave[0]);
    setenv("NIXL_CUDA_STANDIN_WAITS", waits.c_str(), 1);
    std::string reason;
    const Cuda* opened = nullptr;
    std::thread opener([&] { opened = Cuda::get(reason); });
    char byte = 0;
    const bool waited = read(inside[0], &byte, 1) == 1;
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        unsetenv("NIXL_CUDA_STANDIN_WAITS");
        std::string why;
        const Cuda* const mine = Cuda::get(why);
        _exit(mine != nullptr && mine == Cuda::get(why) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    const bool told = write(leave[1], &byte, 1) == 1;
    opener.join();
    return waited && told && opened != nullptr && status == 0 ? 0 : 1;
}

TEST(Cuda, AForkedChildOpensADriverOfItsOwn) {
    const pid_t fresh = fork();
    if (fresh == 0) {
        alarm(40);
        setenv("NIXL_CUDA_LIBRARY", NIXL_POSIX_CUDA_STANDIN, 1);
        _exit(forkWhileOpening());
    }
    int status = -1;
    EXPECT_EQ(waitpid(fresh, &status, 0), fresh);
    EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace nixl::posix
