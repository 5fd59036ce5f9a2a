// What is said of a peer on this host that is gone.
#include "lanes/host/pages.h"

#include <csignal>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace nixl::peer {
namespace {

using testing::HasSubstr;

TEST(HostPages, AProcessThatOnlyClosedItsConnectionHasNotEnded) {
    const Key cookie{};
    const pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    HostTarget target;
    const auto marks = target.open("far", base::Fd());
    ASSERT_TRUE(marks.ok()) << marks.status().message();
    HostProcess process;
    process.pid = child;
    process.pidfd = base::Fd(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
    process.cookieAt = reinterpret_cast<uint64_t>(&cookie);
    auto made = HostPeer::create(std::move(process), target.offer(*marks.value()),
                                 target.pages(*marks.value()));
    ASSERT_TRUE(made.ok()) << made.status().message();
    HostPeer& peer = *made.value();
    const HostPeer::Batch nothing;
    uint64_t moved = 0;
    EXPECT_TRUE(peer.transfer(OpType::READ, nothing, moved).ok());
    peer.end();
    const std::string who = "process " + std::to_string(child);
    Status status = peer.transfer(OpType::READ, nothing, moved);
    EXPECT_EQ(status.code(), ErrorCode::REMOTE_DISCONNECT);
    EXPECT_THAT(status.message(), HasSubstr(who + " has closed its connection"));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    status = peer.transfer(OpType::READ, nothing, moved);
    EXPECT_EQ(status.code(), ErrorCode::REMOTE_DISCONNECT);
    EXPECT_THAT(status.message(), HasSubstr(who + " has ended"));
}

}  // namespace
}  // namespace nixl::peer
