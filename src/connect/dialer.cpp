// See dialer.h.
#include "connect/dialer.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <sys/epoll.h>

#include "base/system_error.h"

namespace nixl::peer {

namespace {

constexpr size_t kDialerReadSize = 8 << 10;
constexpr std::chrono::milliseconds kRoomRetry{3};

// Handshake messages are short and rare: a socket that does not take one whole is given up.
Status sendAll(base::Channel& channel, const std::string& bytes) {
    if (bytes.empty()) {
        return {};
    }
    const iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
    auto put = channel.send(&vector, 1);
    if (!put.ok()) {
        return put.status();
    }
    return put.value() == bytes.size()
               ? Status()
               : Status::disconnected("the connection does not take the handshake");
}

// Appends what can be read now.
Status readSome(base::Channel& channel, std::string& input) {
    char buffer[kDialerReadSize];
    iovec vector{buffer, sizeof(buffer)};
    auto got = channel.receive(&vector, 1);
    if (!got.ok()) {
        return got.status();
    }
    input.append(buffer, got.value());
    return {};
}

// One whole frame at the start of `input`; an empty optional where more bytes are needed.
Result<std::optional<std::pair<FrameType, std::string>>> takeFrame(std::string& input) {
    using Frame = std::optional<std::pair<FrameType, std::string>>;
    auto next = nextFrame(input);
    if (!next.ok()) {
        return next.status();
    }
    const size_t size = next.value().size;
    if (next.value().header.length > kMaxHandshakeFrame) {
        return Status::disconnected("not a handshake frame");
    }
    if (!next.value().whole) {
        return Frame();
    }
    Frame frame(std::in_place, next.value().header.type, next.value().body);
    input.erase(0, size);
    return frame;
}

}  // namespace

Dialer::Dialer(Reactor& reactor,
               std::vector<base::Target> targets,
               Connector connector,
               std::chrono::milliseconds patience)
    : reactor_(reactor),
      targets_(std::move(targets)),
      perTarget_(std::clamp(patience / std::max<int64_t>(static_cast<int64_t>(targets_.size()), 1),
                            std::chrono::milliseconds(50),
                            kLongestPerTarget)),
      fresh_(connector),
      connector_(std::move(connector)) {}

Dialer::~Dialer() {
    closeSocket();
}

void Dialer::closeSocket() {
    if (timer_ != 0) {
        reactor_.stopTimer(std::exchange(timer_, 0));
    }
    if (watch_ != 0) {
        reactor_.unwatch(std::exchange(watch_, 0));
    }
    channel_.reset();
}

void Dialer::cancel() {
    succeeded_ = nullptr;
    failed_ = nullptr;
    closeSocket();
}

void Dialer::start(Succeeded succeeded, Failed failed) {
    succeeded_ = std::move(succeeded);
    failed_ = std::move(failed);
    tryNext();
}

void Dialer::fail(ConnectFailure why) {
    closeSocket();
    succeeded_ = nullptr;
    if (const auto call = std::exchange(failed_, nullptr)) {
        call(std::move(why));
    }
}

// That nobody listens at an address says little where another has more to tell: the loopback of
// another network namespace always refuses.
void Dialer::noteError(const Status& why, bool refused) {
    if (allRefused_) {
        error_ = why;
    }
    allRefused_ = allRefused_ && refused;
}

void Dialer::endTarget(const Status& why, bool refused) {
    noteError(why, refused);
    closeSocket();
    tryNext();
}

void Dialer::tryNext() {
    while (next_ < targets_.size()) {
        const base::Target& target = targets_[next_++];
        connector_ = fresh_;
        connected_ = false;
        input_.clear();
        auto socket = base::startConnect(target);
        if (!socket.ok()) {
            const int error = socket.status().systemErrno();
            if (error == EAGAIN && waitForRoom()) {
                return;
            }
            noteError(socket.status(), error == ECONNREFUSED || error == ENOENT);
            continue;
        }
        fullUntil_.reset();
        base::tuneSocket(socket.value().get());
        channel_ = base::makeSocketChannel(std::move(socket).value());
        const std::weak_ptr<Dialer> weak = weak_from_this();
        const auto self = shared_from_this();
        // The watch keeps this alive; it is dropped with the watch.
        auto watch = reactor_.watch(channel_->fd(), EPOLLOUT,
                                    [self](uint32_t events) { self->onEvent(events); });
        if (!watch.ok()) {
            channel_.reset();
            return fail({watch.status(), false, {}});
        }
        watch_ = watch.value();
        timer_ = reactor_.startTimer(Reactor::Clock::now() + perTarget_, [weak, &target] {
            if (const auto dialer = weak.lock()) {
                dialer->timer_ = 0;
                dialer->endTarget(Status::timeout("no answer from " + target.text), false);
            }
        });
        return;
    }
    if (targets_.empty()) {
        return fail({Status::disconnected("no address of it is known"), false, {}});
    }
    fail({error_, allRefused_, {}});
}

// A unix socket whose queue is full does not let wait in it: asks at the same endpoint again, for
// as long as one endpoint may take.
bool Dialer::waitForRoom() {
    const auto now = Reactor::Clock::now();
    if (!fullUntil_) {
        fullUntil_ = now + perTarget_;
    }
    if (now >= *fullUntil_) {
        fullUntil_.reset();
        return false;
    }
    --next_;
    timer_ = reactor_.startTimer(now + kRoomRetry, [weak = weak_from_this()] {
        if (const auto dialer = weak.lock()) {
            dialer->timer_ = 0;
            dialer->tryNext();
        }
    });
    return true;
}

void Dialer::onEvent(uint32_t /*events*/) {
    const auto keep = shared_from_this();
    if (!connected_) {
        onConnected();
    } else {
        readFrames({});
    }
}

void Dialer::onConnected() {
    const base::Target& target = targets_[next_ - 1];
    if (const int error = base::connectError(channel_->fd()); error != 0) {
        return endTarget(base::systemError("cannot connect to " + target.text, error,
                                           ErrorCode::REMOTE_DISCONNECT),
                         error == ECONNREFUSED || error == ENOENT);
    }
    connected_ = true;
    const Status sent = sendAll(*channel_, connector_.start());
    const Status watched = reactor_.modify(watch_, EPOLLIN);
    if (!watched.ok()) {
        return endTarget(watched, false);
    }
    if (!sent.ok()) {
        // Who refuses without having read anything closes before this is sent: its word counts.
        readFrames(sent);
    }
}

void Dialer::readFrames(const Status& sent) {
    Status status = readSome(*channel_, input_);
    while (true) {
        auto frame = takeFrame(input_);
        if (!frame.ok()) {
            return endTarget(frame.status(), false);
        }
        if (!frame.value()) {
            break;
        }
        // NOLINTNEXTLINE(bugprone-unchecked-optional-access)
        auto answer = connector_.onFrame(frame.value()->first, frame.value()->second);
        if (!answer.ok()) {
            ConnectFailure why{answer.status(), false, {}};
            if (connector_.refused()) {
                // NOLINTNEXTLINE(bugprone-unchecked-optional-access)
                why.code = connector_.refused()->code;
            } else if (answer.status().code() == ErrorCode::NOT_ALLOWED) {
                why.code = RejectCode::AUTHENTICATION;  // found on this side
            } else if (answer.status().code() == ErrorCode::MISMATCH) {
                why.code = RejectCode::VERSION;
            }
            // Another agent behind this address: the right one may be behind the next.
            if (why.code == RejectCode::WRONG_AGENT && next_ < targets_.size()) {
                return endTarget(why.status, false);
            }
            return fail(std::move(why));
        }
        if (Status sent = sendAll(*channel_, answer.value()); !sent.ok()) {
            return endTarget(sent, false);
        }
        if (connector_.done()) {
            ConnectResult opened;
            opened.result = connector_.result();
            opened.early = std::exchange(input_, {});
            opened.process = base::socketPeer(channel_->fd());
            opened.target = targets_[next_ - 1];
            reactor_.unwatch(std::exchange(watch_, 0));
            opened.channel = std::move(channel_);
            closeSocket();
            failed_ = nullptr;
            if (const auto call = std::exchange(succeeded_, nullptr)) {
                call(std::move(opened));
            }
            return;
        }
    }
    if (!sent.ok() || !status.ok()) {
        endTarget(sent.ok() ? status : sent, false);
    }
}

IncomingHandshake::IncomingHandshake(Reactor& reactor,
                                     base::Fd socket,
                                     const HandshakeSelf& self,
                                     Admission& admission)
    : reactor_(reactor),
      acceptor_(self, admission),
      channel_(base::makeSocketChannel(std::move(socket))) {
    base::tuneSocket(channel_->fd());
}

IncomingHandshake::~IncomingHandshake() {
    closeSocket();
}

void IncomingHandshake::closeSocket() {
    if (timer_ != 0) {
        reactor_.stopTimer(std::exchange(timer_, 0));
    }
    if (watch_ != 0) {
        reactor_.unwatch(std::exchange(watch_, 0));
    }
    channel_.reset();
}

void IncomingHandshake::cancel() {
    finished_ = nullptr;
    closeSocket();
}

void IncomingHandshake::start(Finished finished) {
    finished_ = std::move(finished);
    const auto self = shared_from_this();
    auto watch = reactor_.watch(channel_->fd(), EPOLLIN, [self](uint32_t) { self->onEvent(); });
    if (!watch.ok()) {
        return finish(watch.status());
    }
    watch_ = watch.value();
    const std::weak_ptr<IncomingHandshake> weak = weak_from_this();
    timer_ = reactor_.startTimer(Reactor::Clock::now() + kPatience, [weak] {
        if (const auto incoming = weak.lock()) {
            incoming->timer_ = 0;
            incoming->finish(Status::timeout("no handshake within 5 s"));
        }
    });
}

void IncomingHandshake::finish(Result<ConnectResult> result) {
    const auto call = std::exchange(finished_, nullptr);
    const auto keep = shared_from_this();
    closeSocket();
    if (call) {
        call(std::move(result));
    }
}

void IncomingHandshake::onEvent() {
    const auto keep = shared_from_this();
    if (Status status = take(); !status.ok()) {
        finish(status);
    }
}

Status IncomingHandshake::take() {
    const Status status = readSome(*channel_, input_);
    if (!magic_) {
        const size_t known = std::min(input_.size(), kMagic.size());
        if (input_.compare(0, known, kMagic, 0, known) != 0) {
            return Status::disconnected("an unknown peer that does not speak the protocol");
        }
        if (input_.size() < kMagic.size()) {
            // NOLINTNEXTLINE(performance-no-automatic-move)
            return status;
        }
        magic_ = true;
        input_.erase(0, kMagic.size());
    }
    while (true) {
        auto frame = takeFrame(input_);
        if (!frame.ok()) {
            return frame.status();
        }
        if (!frame.value()) {
            // NOLINTNEXTLINE(performance-no-automatic-move)
            return status;
        }
        // NOLINTNEXTLINE(bugprone-unchecked-optional-access)
        auto answer = acceptor_.onFrame(frame.value()->first, frame.value()->second);
        if (!answer.ok()) {
            static_cast<void>(sendAll(*channel_, acceptor_.closeReason()).ok());
            return answer.status();
        }
        NIXL_RETURN_IF_ERROR(sendAll(*channel_, answer.value()));
        if (acceptor_.done()) {
            ConnectResult opened;
            opened.result = acceptor_.result();
            opened.early = std::exchange(input_, {});
            opened.process = base::socketPeer(channel_->fd());
            reactor_.unwatch(std::exchange(watch_, 0));
            opened.channel = std::move(channel_);
            finish(std::move(opened));
            return {};
        }
    }
}

}  // namespace nixl::peer
