// See fabric_endpoint.h.
#include "fabric_endpoint.h"

#include <algorithm>
#include <cstring>

#include <rdma/fi_cm.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

namespace nixl::fabric {

Result<std::unique_ptr<Endpoint>> Endpoint::open(Domain& domain,
                                                 const std::string& name,
                                                 size_t receives) {
    std::unique_ptr<Endpoint> made(new Endpoint(domain));
    NIXL_RETURN_IF_ERROR(made->start(name, receives));
    return made;
}

Endpoint::~Endpoint() {
    if (endpoint_ != nullptr) {
        fi_close(&endpoint_->fid);
    }
    if (addresses_ != nullptr) {
        fi_close(&addresses_->fid);
    }
    if (queue_ != nullptr) {
        fi_close(&queue_->fid);
    }
    if (mapped_.handle != nullptr) {
        domain_.unmap(mapped_);
    }
}

Status Endpoint::openQueue(size_t size) {
    fi_cq_attr attributes{};
    attributes.format = FI_CQ_FORMAT_MSG;
    attributes.size = size;
    attributes.wait_obj = FI_WAIT_FD;
    int error = fi_cq_open(domain_.handle(), &attributes, &queue_, nullptr);
    if (error == 0) {
        error = fi_control(&queue_->fid, FI_GETWAIT, &fd_);
    } else if (error == -FI_ENOSYS || error == -FI_EINVAL) {
        attributes.wait_obj = FI_WAIT_NONE;  // efa
        error = fi_cq_open(domain_.handle(), &attributes, &queue_, nullptr);
    }
    return error == 0 ? Status() : Status::backend(domain_.text("making a queue", error));
}

Status Endpoint::start(const std::string& name, size_t receives) {
    const InfoPtr info(domain_.library().dupInfo(&domain_.info()), domain_.library().freeInfo);
    if (info == nullptr) {
        return Status::backend(domain_.text("making an endpoint", -FI_ENOMEM));
    }
    if (!name.empty()) {
        std::free(info->src_addr);
        info->src_addr = std::malloc(name.size());
        info->src_addrlen = info->src_addr == nullptr ? 0 : name.size();
        std::memcpy(info->src_addr, name.data(), info->src_addrlen);
    }
    info->tx_attr->op_flags = 0;
    NIXL_RETURN_IF_ERROR(openQueue(info->tx_attr->size + receives + kSends));
    fi_av_attr table{};
    table.type = FI_AV_TABLE;
    std::string step = "making an address table";
    int error = fi_av_open(domain_.handle(), &table, &addresses_, nullptr);
    if (error == 0) {
        step = "making an endpoint";
        error = fi_endpoint(domain_.handle(), info.get(), &endpoint_, nullptr);
    }
    error = error != 0 ? error : fi_ep_bind(endpoint_, &addresses_->fid, 0);
    error = error != 0 ? error : fi_ep_bind(endpoint_, &queue_->fid, FI_TRANSMIT | FI_RECV);
    if (error == 0) {
        step = "starting an endpoint";
        error = fi_enable(endpoint_);
    }
    if (error == 0) {
        char bytes[kAddressSize];
        size_t size = sizeof(bytes);
        error = fi_getname(&endpoint_->fid, bytes, &size);
        name_.assign(bytes, std::min(size, sizeof(bytes)));
    }
    if (error != 0) {
        return Status::backend(domain_.text(step, error));
    }
    return prepareSlots(receives);
}

Status Endpoint::prepareSlots(size_t receives) {
    memory_.resize((receives + kSends) * kMessageSize);
    if (domain_.modeHas(FI_MR_LOCAL)) {
        MemoryRegion region;
        region.address = reinterpret_cast<uint64_t>(memory_.data());
        region.size = memory_.size();
        Result<Domain::Mapped> mapped = domain_.map(region, FI_SEND | FI_RECV);
        if (!mapped.ok()) {
            return mapped.status();
        }
        mapped_ = mapped.value();
    }
    slots_.resize(receives + kSends);
    for (size_t i = 0; i < slots_.size(); ++i) {
        Slot& slot = slots_[i];
        slot.bytes = memory_.data() + i * kMessageSize;
        if (i >= receives) {
            slot.kind = Context::Kind::SEND;
            free_.push_back(&slot);
            continue;
        }
        slot.kind = Context::Kind::RECEIVE;
        if (const long error = receive(slot); error != 0) {
            return Status::backend(domain_.text("posting a receive", error));
        }
    }
    return {};
}

long Endpoint::receive(Slot& slot) {
    return fi_recv(endpoint_, slot.bytes, kMessageSize, mapped_.descriptor, FI_ADDR_UNSPEC, &slot);
}

Result<fi_addr_t> Endpoint::insert(const std::string& address) {
    if (address.size() != name_.size()) {
        return Status::invalidParam(domain_.label() + ": a peer's address has " +
                                    std::to_string(address.size()) + " bytes, own ones " +
                                    std::to_string(name_.size()));
    }
    fi_addr_t made = FI_ADDR_NOTAVAIL;
    const int count = fi_av_insert(addresses_, address.data(), 1, &made, 0, nullptr);
    if (count != 1) {
        return Status::backend(
            domain_.text("taking a peer's address", count < 0 ? count : -FI_EINVAL));
    }
    return made;
}

void Endpoint::forget(fi_addr_t address) {
    fi_av_remove(addresses_, &address, 1, 0);
}

void Endpoint::send(fi_addr_t to, const Message& message, uint64_t tag) {
    waiting_.push_back({to, encode(message), tag});
    flush(nullptr);
}

bool Endpoint::unsentTo(fi_addr_t to) const {
    return std::any_of(waiting_.begin(), waiting_.end(),
                       [to](const Waiting& one) { return one.to == to; });
}

// In order for each destination; one that is out of reach keeps no other waiting.
void Endpoint::flush(EndpointEvents* events) {
    std::vector<fi_addr_t> busy;
    for (auto next = waiting_.begin(); !held_ && next != waiting_.end() && !free_.empty();) {
        if (std::find(busy.begin(), busy.end(), next->to) != busy.end()) {
            ++next;
            continue;
        }
        Slot& slot = *free_.back();
        std::memcpy(slot.bytes, next->bytes.data(), next->bytes.size());
        slot.tag = next->tag;
        const long error =
            fi_send(endpoint_, slot.bytes, next->bytes.size(), mapped_.descriptor, next->to, &slot);
        if (error == -FI_EAGAIN || (error != 0 && events == nullptr)) {
            busy.push_back(next->to);
            ++next;
            continue;
        }
        next = waiting_.erase(next);
        if (error != 0) {
            events->sendFailed(slot.tag, error);
        } else {
            free_.pop_back();
        }
    }
}

long Endpoint::move(
    bool read, void* local, size_t size, void* descriptor, const Target& there, Move& context) {
    iovec here{local, size};
    fi_rma_iov remote{there.at, size, there.key};
    fi_msg_rma message{};
    message.msg_iov = &here;
    message.desc = &descriptor;
    message.iov_count = 1;
    message.addr = there.address;
    message.rma_iov = &remote;
    message.rma_iov_count = 1;
    message.context = &context.room;
    context.size = size;
    context.read = read;
    constexpr uint64_t kFlags = FI_DELIVERY_COMPLETE | FI_COMPLETION;
    return read ? fi_readmsg(endpoint_, &message, kFlags)
                : fi_writemsg(endpoint_, &message, kFlags);
}

void Endpoint::tell(EndpointEvents& events, Context& context, size_t size, long error) {
    if (context.kind == Context::Kind::MOVE) {
        return events.moved(static_cast<Move&>(context), error);
    }
    Slot& slot = static_cast<Slot&>(context);
    if (context.kind == Context::Kind::SEND) {
        free_.push_back(&slot);
        if (error != 0) {
            events.sendFailed(slot.tag, error);
        }
        return;
    }
    if (error == -FI_ECANCELED) {
        return;
    }
    if (error == 0) {
        if (const Result<Message> message =
                decodeMessage({slot.bytes, std::min(size, kMessageSize)});
            message.ok()) {
            events.received(message.value());
        }
    }
    if (const long again = receive(slot); again != 0) {
        events.broken(again);
    }
}

size_t Endpoint::look(EndpointEvents& events) {
    flush(&events);
    fi_cq_msg_entry entries[kBatch];
    const ssize_t count = fi_cq_read(queue_, entries, kBatch);
    if (count > 0) {
        for (ssize_t i = 0; i < count; ++i) {
            tell(events, *static_cast<Context*>(entries[i].op_context), entries[i].len, 0);
        }
        return static_cast<size_t>(count);
    }
    if (count == -FI_EAVAIL) {
        fi_cq_err_entry error{};
        if (fi_cq_readerr(queue_, &error, 0) > 0) {
            const long code = error.err == 0 ? -FI_EOTHER : -error.err;
            if (error.op_context != nullptr) {
                tell(events, *static_cast<Context*>(error.op_context), 0, code);
            } else {
                events.broken(code);
            }
            return 1;
        }
    } else if (count < 0 && count != -FI_EAGAIN && count != -FI_EINTR) {
        events.broken(count);
        return 1;
    }
    return 0;
}

}  // namespace nixl::fabric
