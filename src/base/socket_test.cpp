// Sockets where the system has no room, and what is asked of it for silent connections.
#include "base/socket.h"

#include <string>

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nixl::base {
namespace {

// Leaves room for so many descriptors more; all that was allowed at the end of the scope.
class FewDescriptors {
  public:
    explicit FewDescriptors(rlim_t room) {
        getrlimit(RLIMIT_NOFILE, &before_);
        const Fd lowest(dup(0));
        const rlimit few{static_cast<rlim_t>(lowest.get()) + room, before_.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
    }
    ~FewDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }
    FewDescriptors(const FewDescriptors&) = delete;
    FewDescriptors& operator=(const FewDescriptors&) = delete;

  private:
    rlimit before_{};
};

std::string take(Channel& channel) {
    char buffer[64];
    iovec vector{buffer, sizeof(buffer)};
    const auto got = channel.receive(&vector, 1);
    EXPECT_TRUE(got.ok()) << got.status().message();
    return {buffer, got.ok() ? got.value() : 0};
}

void send(Channel& channel, std::string text, std::span<const int> descriptors) {
    const iovec vector{text.data(), text.size()};
    ASSERT_TRUE(channel.sendWith(&vector, 1, descriptors).ok());
}

// The bytes come, the descriptors do not, nor do later ones: whose they are is not known.
TEST(Socket, DescriptorsThatFindNoRoomAreLeftOut) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    const auto near = makeSocketChannel(Fd(pair[0]));
    const auto far = makeSocketChannel(Fd(pair[1]));
    far->allowDescriptors(4);
    const int descriptors[] = {0, 1};
    send(*near, "good", descriptors);
    EXPECT_EQ(take(*far), "good");
    EXPECT_EQ(far->takeDescriptors(2).size(), 2U);
    for (const rlim_t room : {0, 1}) {
        const FewDescriptors few(room);
        send(*near, "full", descriptors);
        EXPECT_EQ(take(*far), "full");
        EXPECT_TRUE(far->takeDescriptors(1).empty());
    }
    send(*near, "room", descriptors);
    EXPECT_EQ(take(*far), "room");
    EXPECT_TRUE(far->takeDescriptors(1).empty());
}

TEST(Socket, SilentConnectionsAreKeptAlive) {
    const Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_TRUE(fd);
    tuneSocket(fd.get());
    int on = 0;
    socklen_t length = sizeof(on);
    ASSERT_EQ(getsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, &length), 0);
    EXPECT_EQ(on, 1);
}

}  // namespace
}  // namespace nixl::base
