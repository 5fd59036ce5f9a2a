// See fabric_inbound.h.
#include "fabric_inbound.h"

#include <algorithm>

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
    dropAll();
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
    if (endpoint_->unsent()) {
        for (const auto& [link, peer] : peers_) {
            if (!peer.bell.empty()) {
                rings_.insert(peer.bell);
            }
        }
    }
    const size_t events = endpoint_->look(*this);
    for (const Id& link : std::exchange(gone_, {})) {
        drop(link);
    }
    return events != 0;
}

void Inbound::say(const Peer& peer, const Message& message) {
    endpoint_->send(peer.address, message, peer.number);
    if (!peer.bell.empty()) {
        rings_.insert(peer.bell);
    }
}

void Inbound::drop(const Id& link) {
    const auto found = peers_.find(link);
    if (found == peers_.end()) {
        return;
    }
    if (endpoint_ != nullptr) {
        endpoint_->forget(found->second.address);
    }
    peers_.erase(found);
    for (auto fence = fences_.begin(); fence != fences_.end();) {
        fence->second.erase(link);
        fence = fence->second.empty() ? fences_.erase(fence) : std::next(fence);
    }
}

void Inbound::dropAll() {
    peers_.clear();
    fences_.clear();
}

void Inbound::forget(const std::string& agent) {
    std::vector<Id> links;
    for (const auto& [link, peer] : peers_) {
        if (peer.agent.starts_with(agent)) {
            links.push_back(link);
        }
    }
    std::for_each(links.begin(), links.end(), [this](const Id& link) { drop(link); });
}

uint64_t Inbound::fence(uint64_t key) {
    Message message;
    message.type = MessageType::FENCE;
    message.number = next_;
    message.keys = {key};
    std::set<Id> users;
    for (auto& [link, peer] : peers_) {
        if (peer.keys.erase(key) != 0) {
            message.link = link;
            say(peer, message);
            users.insert(link);
        }
    }
    if (users.empty()) {
        return 0;
    }
    fences_[next_] = std::move(users);
    return next_++;
}

void Inbound::greet(const Message& message) {
    // Who connects again has closed the connection before.
    for (const auto& [link, peer] : peers_) {
        if (peer.agent == message.agent && link != message.link) {
            gone_.push_back(link);
        }
    }
    const Result<fi_addr_t> address = endpoint_->insert(message.endpoint);
    if (!address.ok()) {
        return;
    }
    Peer& peer = peers_[message.link];
    peer = {next_++, message.agent, message.bell, address.value(), {}};
    Message welcome;
    welcome.type = MessageType::WELCOME;
    welcome.link = message.link;
    welcome.instance = instance_;
    say(peer, welcome);
}

void Inbound::received(const Message& message) {
    if (message.type == MessageType::HELLO) {
        return greet(message);
    }
    const auto found = peers_.find(message.link);
    if (found == peers_.end()) {
        return;
    }
    Peer& peer = found->second;
    if (message.type == MessageType::BYE) {
        gone_.push_back(message.link);
    } else if (message.type == MessageType::FENCED) {
        if (const auto fence = fences_.find(message.number); fence != fences_.end()) {
            fence->second.erase(message.link);
            if (fence->second.empty()) {
                fences_.erase(fence);
            }
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

void Inbound::sendFailed(uint64_t tag, long /*error*/) {
    for (const auto& [link, peer] : peers_) {
        if (peer.number == tag) {
            gone_.push_back(link);
        }
    }
}

}  // namespace nixl::fabric
