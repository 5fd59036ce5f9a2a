// See fabric_inbound.h.
#include "fabric_inbound.h"

#include <algorithm>

#include <rdma/fi_errno.h>

namespace nixl::fabric {

Status Inbound::open() {
    Result<std::unique_ptr<Endpoint>> made = Endpoint::open(domain_, {}, kReceives);
    if (!made.ok()) {
        return made.status();
    }
    endpoint_ = std::move(made).value();
    return {};
}

Status Inbound::reopen() {
    name_ = endpoint_ == nullptr ? name_ : endpoint_->name();
    peers_.clear();
    fences_.clear();
    broken_ = false;
    endpoint_.reset();
    Result<std::unique_ptr<Endpoint>> made = Endpoint::open(domain_, name_, kReceives);
    if (!made.ok()) {
        return made.status();
    }
    endpoint_ = std::move(made).value();
    return {};
}

bool Inbound::step() {
    if (endpoint_ == nullptr) {
        return false;
    }
    const size_t events = endpoint_->look(*this);
    for (const Id& link : std::exchange(closed_, {})) {
        drop(link);
    }
    for (const Id& link : std::exchange(retired_, {})) {
        retire(link);
    }
    return events != 0;
}

void Inbound::say(const Peer& peer, const Message& message) {
    endpoint_->send(peer.address, message, peer.number);
}

void Inbound::drop(const Id& link) {
    const auto found = peers_.find(link);
    if (found == peers_.end()) {
        return;
    }
    // Over sockets libfabric would close the connection, whatever is on it; of others it needs what
    // it knows of who may still have asked for something.
    if (endpoint_ != nullptr && !found->second.lost && !domain_.overSockets()) {
        endpoint_->forget(found->second.address);
    }
    peers_.erase(found);
    for (auto& [number, fence] : fences_) {
        fence.users.erase(link);
    }
}

// Its endpoint has been closed, with something of it on the way here, perhaps.
void Inbound::retire(const Id& link) {
    const auto found = peers_.find(link);
    if (found != peers_.end() && found->second.keys.empty()) {
        return drop(link);
    }
    if (found != peers_.end()) {
        found->second.lost = found->second.gone = true;
        found->second.name.clear();
        for (auto& [number, fence] : fences_) {
            fence.unsure = fence.users.erase(link) != 0 || fence.unsure;
        }
    }
}

void Inbound::forget(const Id& instance) {
    for (auto& [link, peer] : peers_) {
        peer.lost = peer.lost || peer.instance == instance;
    }
}

uint64_t Inbound::fence(uint64_t key) {
    Message message;
    message.type = MessageType::FENCE;
    message.number = next_++;
    message.keys = {key};
    Fence& fence = fences_[message.number];
    for (auto& [link, peer] : peers_) {
        if (peer.keys.erase(key) != 0) {
            fence.unsure = fence.unsure || peer.lost;
            if (!peer.lost) {
                fence.users.insert(link);
            }
            if (!peer.gone && (!peer.lost || !endpoint_->unsentTo(peer.address))) {
                message.link = link;
                say(peer, message);
            }
        }
    }
    return message.number;
}

bool Inbound::fenced(uint64_t number) const {
    const auto found = fences_.find(number);
    return found == fences_.end() || found->second.users.empty();
}

bool Inbound::endFence(uint64_t number) {
    const auto found = fences_.find(number);
    if (found == fences_.end()) {
        return true;
    }
    const bool sure = found->second.users.empty() && !found->second.unsure;
    fences_.erase(found);
    return sure;
}

void Inbound::connectionsEnded() {
    std::erase_if(peers_, [](const auto& entry) { return entry.second.gone; });
}

// Who connects, or is known no more.
Inbound::Peer* Inbound::meet(const Message& message) {
    // Who connects again has closed the connection before.
    for (const auto& [link, peer] : peers_) {
        if (peer.name == message.agent && link != message.link) {
            (message.number == 0 ? closed_ : retired_).push_back(link);
        }
    }
    const Result<fi_addr_t> address = endpoint_->insert(message.endpoint);
    if (!address.ok()) {
        return nullptr;
    }
    Peer& peer = peers_[message.link];
    peer.number = next_++;
    peer.instance = message.instance;
    peer.name = message.agent;
    peer.address = address.value();
    return &peer;
}

void Inbound::received(const Message& message) {
    const auto found = peers_.find(message.link);
    const bool introduces = message.type == MessageType::HELLO || message.type == MessageType::USE;
    Peer* const known = found != peers_.end() ? &found->second
                        : introduces          ? meet(message)
                                              : nullptr;
    if (known == nullptr) {
        return;
    }
    Peer& peer = *known;
    if (message.type == MessageType::HELLO) {
        Message welcome;
        welcome.type = MessageType::WELCOME;
        welcome.link = message.link;
        welcome.instance = instance_;
        return say(peer, welcome);
    }
    if (message.type == MessageType::BYE) {
        closed_.push_back(message.link);
    } else if (message.type == MessageType::FENCED) {
        if (const auto fence = fences_.find(message.number); fence != fences_.end()) {
            fence->second.users.erase(message.link);
        }
    } else if (message.type == MessageType::USE) {
        Message used = message;
        used.type = MessageType::USED;
        for (size_t i = 0; i < used.keys.size(); ++i) {
            used.live[i] = domain_.live(used.keys[i]);
            if (used.live[i]) {
                peer.keys.insert(used.keys[i]);
            }
        }
        say(peer, used);
    }
}

void Inbound::sendFailed(uint64_t tag, long error) {
    for (auto& [link, peer] : peers_) {
        if (peer.number != tag) {
            continue;
        }
        peer.lost = true;
        peer.gone = peer.gone || error == -FI_ECONNREFUSED;
        for (auto& [number, fence] : fences_) {
            fence.unsure = fence.users.erase(link) != 0 || fence.unsure;
        }
        if (peer.keys.empty()) {
            closed_.push_back(link);
        }
    }
}

}  // namespace nixl::fabric
