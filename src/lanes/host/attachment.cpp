// See attachment.h: the process, and choosing whether it can be reached.
#include "lanes/host/attachment.h"

#include <iterator>
#include <utility>

#include <sys/epoll.h>

#include "base/log.h"

namespace nixl::peer {

HostAttachment::HostAttachment(Context context, std::weak_ptr<HostControl> control)
    : context_(std::move(context)), control_(std::move(control)) {}

HostAttachment::~HostAttachment() = default;

void HostAttachment::connecting(Connection connection) {
    const MutexLock lock(mutex_);
    connection_ = connection.number;
    key_ = connection.key;
    process_ = connection.process;
    processFd_ = std::move(connection.pidfd);
    cookieAt_ = connection.cookieAt;
    cookie_ = connection.cookie;
    answering_ = false;
    maps_.connectionLost();
    if (!connection.resumed) {
        host_.reset();
        decided_ = false;
        maps_.sessionLost();
        given_.clear();
    } else if (host_ != nullptr) {
        maps_.dropRevoked(*host_);  // its notices may have been lost with the connection
    }
}

void HostAttachment::offer(const std::string& elsewhere) {
    uint64_t connection = 0;
    base::Fd pidfd;
    {
        const MutexLock lock(mutex_);
        connection = connection_;
        pidfd = duplicateFd(processFd_);
    }
    if (!elsewhere.empty()) {
        return decide(connection, nullptr, elsewhere);
    }
    watchProcess(duplicateFd(pidfd));
    HostOffer offer;
    if (marks_ == nullptr) {
        auto marks = context_.target.open(context_.peer, std::move(pidfd));
        if (marks.ok()) {
            marks_ = std::move(marks).value();
        } else {
            base::log(LogLevel::INFO,
                      "host lane to agent \"" + context_.peer + "\": " + marks.status().message());
        }
    }
    std::vector<base::Fd> pages;
    if (marks_ != nullptr) {
        offer = context_.target.offer(*marks_);
        pages = context_.target.pages(*marks_);
    }
    if (const auto control = control_.lock()) {
        control->sendFrame(connection, FrameType::HOST_OFFER, offer.encode(), std::move(pages));
    }
}

void HostAttachment::onFrame(uint64_t connection,
                             FrameType type,
                             std::string_view body,
                             const std::vector<base::Fd>& descriptors) {
    if (type == FrameType::HOST_OFFER) {
        onOffer(connection, body, descriptors);
    } else if (type == FrameType::MAP_REQUEST) {
        onMapRequest(connection, body);
    } else if (type == FrameType::MAP_REPLY) {
        onMapReply(connection, body, descriptors);
    }
}

void HostAttachment::onOffer(uint64_t connection,
                             std::string_view body,
                             const std::vector<base::Fd>& descriptors) {
    auto offer = HostOffer::decode(body);
    HostProcess process;
    {
        const MutexLock lock(mutex_);
        if (connection != connection_) {
            return;
        }
        process.pid = process_.pid;
        process.pidfd = duplicateFd(processFd_);
        process.cookieAt = cookieAt_;
        process.cookie = cookie_;
        if (host_ != nullptr && !host_->dead()) {
            offer = Status::notSupported("attached already");
        }
    }
    if (!offer.ok()) {
        return decide(connection, nullptr, offer.status().message());
    }
    if (offer.value().generationsFd == 0) {
        return decide(connection, nullptr, "the peer cannot share pages");
    }
    auto host = HostPeer::create(std::move(process), offer.value(), descriptors);
    if (!host.ok()) {
        return decide(connection, nullptr, host.status().message());
    }
    std::string reason = host.value()->attached()
                             ? "attached to process " + std::to_string(host.value()->pid())
                             : host.value()->attachError();
    decide(connection, std::move(host).value(), std::move(reason));
}

void HostAttachment::decide(uint64_t connection,
                            std::shared_ptr<HostPeer> host,
                            std::string reason) {
    {
        const MutexLock lock(mutex_);
        if (connection == 0 || connection != connection_) {
            return;
        }
        if (host_ == nullptr || host != nullptr) {
            host_ = std::move(host);
            reason_ = std::move(reason);
        }
        decided_ = true;
        askMaps();
    }
    if (const auto control = control_.lock()) {
        control->hostDecided(connection);
    }
}

HostAttachment::Choice HostAttachment::choice() {
    const MutexLock lock(mutex_);
    return {host_, reason_, decided_};
}

std::shared_ptr<HostPeer> HostAttachment::peer() {
    const MutexLock lock(mutex_);
    return host_;
}

void HostAttachment::disconnected() {
    const MutexLock lock(mutex_);
    connection_ = 0;
    answering_ = false;
    maps_.connectionLost();
}

std::vector<HostAttachment::Done> HostAttachment::sessionLost() {
    std::vector<Done> waiting;
    {
        const MutexLock lock(mutex_);
        connection_ = 0;
        answering_ = false;
        if (host_ != nullptr) {
            host_->end();
        }
        host_.reset();
        decided_ = false;
        reason_ = "no session";
        key_ = {};
        maps_.connectionLost();
        maps_.sessionLost();
        given_.clear();
        waiting.swap(mapWaiting_);
    }
    forgetProcess();
    return waiting;
}

void HostAttachment::watchProcess(base::Fd pidfd) {
    if (pidWatch_ != 0 || !pidfd) {
        return;  // without one the end of the connection must do
    }
    pidfd_ = std::move(pidfd);
    auto watch = context_.reactor.watch(pidfd_.get(), EPOLLIN, [control = control_](uint32_t) {
        if (const auto told = control.lock()) {
            told->processEndedNow();
        }
    });
    pidWatch_ = watch.ok() ? watch.value() : 0;
}

void HostAttachment::forgetProcess() {
    if (pidWatch_ != 0) {
        context_.reactor.unwatch(std::exchange(pidWatch_, 0));
    }
    pidfd_.reset();
    if (marks_ != nullptr) {
        context_.target.close(std::exchange(marks_, nullptr));
    }
}

bool HostAttachment::processHasEnded() const {
    return processEnded(pidfd_);
}

// Nothing but its end closes a unix socket; where that cannot be asked for it is assumed.
bool HostAttachment::onlyItsEndCloses() {
    const MutexLock lock(mutex_);
    return process_.local && !processFd_;
}

}  // namespace nixl::peer
