// Requests over a plain server of the test's own.
#include "exchange_etcd/http_loop.h"

#include <array>
#include <future>
#include <memory>
#include <thread>

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/socket.h"

namespace nixl::exchange_etcd {
namespace {

constexpr std::chrono::seconds kPatience{60};

// Answers every request with "word\n", one connection after the other, until it is destroyed.
class Server {
  public:
    Server() : listener_(std::move(base::listenTcp(port_)).value()) {
        thread_ = std::thread([this] { serve(); });
    }
    ~Server() {
        stop_ = true;
        thread_.join();
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/"; }

  private:
    void serve() {
        while (!stop_) {
            pollfd waiting{listener_.get(), POLLIN, 0};
            if (poll(&waiting, 1, 20) <= 0) {
                continue;
            }
            const base::Fd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            std::array<char, 4096> asked{};
            static_cast<void>(!read(peer.get(), asked.data(), asked.size()));
            constexpr std::string_view kAnswer =
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nword\n";
            static_cast<void>(!write(peer.get(), kAnswer.data(), kAnswer.size()));
        }
    }

    uint16_t port_ = 0;
    base::Fd listener_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

class HttpLoopTest : public ::testing::Test {
  protected:
    void SetUp() override {
        auto made = HttpLoop::create({});
        if (!made.ok()) {
            GTEST_SKIP() << made.status().message();
        }
        loop_ = std::move(made).value();
    }

    Server server_;
    std::unique_ptr<HttpLoop> loop_;
};

// A watch that is refused asks for a new token as the refusal comes, inside libcurl's callback.
TEST_F(HttpLoopTest, ARequestMayBeSentWhileBytesOfAnotherCome) {
    std::promise<HttpReply> second;
    ASSERT_TRUE(loop_->run([&] {
        HttpRequest first;
        first.url = server_.url();
        first.onData = [&](std::string_view) {
            HttpRequest inside;
            inside.url = server_.url();
            inside.timeout = kPatience;
            inside.done = [&](HttpReply reply) { second.set_value(std::move(reply)); };
            loop_->send(std::move(inside));
        };
        first.done = [](const HttpReply&) {};
        loop_->send(std::move(first));
    }));
    auto answered = second.get_future();
    ASSERT_EQ(answered.wait_for(kPatience), std::future_status::ready);
    const HttpReply reply = answered.get();
    EXPECT_TRUE(reply.arrived) << reply.error;
    EXPECT_EQ(reply.body, "word\n");
}

TEST_F(HttpLoopTest, WhatIsCanceledBeforeItBeganIsNeverSent) {
    std::promise<void> over;
    std::atomic<bool> called{false};
    ASSERT_TRUE(loop_->run([&] {
        HttpRequest first;
        first.url = server_.url();
        first.onData = [&](std::string_view) {
            HttpRequest inside;
            inside.url = server_.url();
            inside.done = [&](const HttpReply&) { called = true; };
            loop_->cancel(loop_->send(std::move(inside)));
        };
        first.done = [&](const HttpReply&) {
            loop_->startTimer(HttpLoop::Clock::now(), [&] { over.set_value(); });
        };
        loop_->send(std::move(first));
    }));
    ASSERT_EQ(over.get_future().wait_for(kPatience), std::future_status::ready);
    loop_.reset();
    EXPECT_FALSE(called);
}

}  // namespace
}  // namespace nixl::exchange_etcd
