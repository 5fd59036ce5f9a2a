// See queue.h. The numbers are those of DOCA's published interface.
#include "queue.h"

#include <cstring>
#include <functional>

namespace nixl::gpunetio {
namespace {

constexpr uint32_t kSlots = 1024;
constexpr uint64_t kRequestsSize = uint64_t{kSlots} * kWqeSize;
constexpr uint64_t kCompletionsSize = uint64_t{kSlots} * kCqeSize;
constexpr uint32_t kReceives = 16;  // never used; the pair wants some
constexpr uint64_t kQueuePage = 4096;
constexpr uint64_t kReceiveRoom = 4096;

constexpr int kGpuMemory = 0;
constexpr uint32_t kFullAccess = 15;
constexpr int kDedicatedUar = 2;
constexpr uint32_t kReliable = 0;

constexpr int kInit = 1;
constexpr int kReadyToReceive = 2;
constexpr int kReadyToSend = 3;
constexpr int kError = 4;
constexpr int kMtu1024 = 2;
constexpr int kIpv4 = 0;
constexpr int kNoGrh = 3;

enum Attribute : uint16_t {
    REMOTE_WRITE = 1 << 0,
    REMOTE_READ = 1 << 1,
    PKEY_INDEX = 1 << 2,
    RNR_TIMER = 1 << 3,
    PORT = 1 << 4,
    NEXT_STATE = 1 << 5,
    MTU = 1 << 7,
    RECEIVE_PSN = 1 << 8,
    SEND_PSN = 1 << 9,
    PEER_NUMBER = 1 << 10,
    ACK_TIMEOUT = 1 << 11,
    RETRIES = 1 << 12,
    RNR_RETRIES = 1 << 13,
    ADDRESS = 1 << 14,
    ATOMIC = 1 << 15,
};

// Ends an object of attributes with its scope.
struct Guard {
    int (*end)(void*);
    void* object = nullptr;
    ~Guard() {
        if (object != nullptr) {
            end(object);
        }
    }
};

// The first error of several calls.
int all(std::initializer_list<std::function<int()>> calls) {
    for (const auto& call : calls) {
        if (const int error = call(); error != 0) {
            return error;
        }
    }
    return 0;
}

}  // namespace

Result<std::unique_ptr<DeviceStaging>> sharedMemory(Devices& devices, int gpu, uint64_t size) {
    Result<std::unique_ptr<DeviceStaging>> made = devices.staging(gpu, size);
    if (!made.ok()) {
        return made;
    }
    const auto range = devices.find(reinterpret_cast<uint64_t>(made.value()->data()));
    if (!range.ok() || !range.value().pinned) {
        return Status::backend("GPUNETIO: the system page-locks no memory for the GPU (" +
                               std::to_string(size) + " bytes); see ulimit -l");
    }
    std::memset(made.value()->data(), 0, size);
    return made;
}

Result<std::unique_ptr<Queue>> Queue::create(std::shared_ptr<Device> device) {
    std::unique_ptr<Queue> made(new Queue(std::move(device)));
    NIXL_RETURN_IF_ERROR(made->open());
    return made;
}

Status Queue::open() {
    const DeviceScope scope(device_->devices(), device_->options().gpu);
    NIXL_RETURN_IF_ERROR(scope.status());
    NIXL_RETURN_IF_ERROR(makeCompletions());
    NIXL_RETURN_IF_ERROR(makePair());
    return makeState();
}

Status Queue::makeRing(uint64_t size, const char* what, Ring& ring) {
    const std::string text = std::string("memory of the GPU for ") + what;
    NIXL_RETURN_IF_ERROR(doca_.check(
        doca_.allocate(device_->gpu(), size, kQueuePage, kGpuMemory, &ring.address, nullptr),
        text));
    const std::vector<char> zeros(size);
    NIXL_RETURN_IF_ERROR(
        device_->cuda().copy(reinterpret_cast<uint64_t>(ring.address), zeros.data(), size));
    return doca_.check(doca_.createUmem(device_->gpu(), device_->device(), ring.address, size,
                                        kFullAccess, &ring.umem),
                       text);
}

void Queue::endRing(Ring& ring) {
    if (ring.umem != nullptr) {
        doca_.destroyUmem(ring.umem);
    }
    if (ring.address != nullptr) {
        doca_.release(device_->gpu(), ring.address);
    }
}

Status Queue::makeCompletions() {
    const uint64_t size = kCompletionsSize + kQueuePage;
    NIXL_RETURN_IF_ERROR(makeRing(size, "completions", completions_));
    std::vector<char> invalid(kCompletionsSize);
    for (size_t at = kCqeSize - 1; at < invalid.size(); at += kCqeSize) {
        invalid[at] = static_cast<char>(0xf1);  // of the hardware, no completion
    }
    NIXL_RETURN_IF_ERROR(device_->cuda().copy(reinterpret_cast<uint64_t>(completions_.address),
                                              invalid.data(), invalid.size()));
    Guard attributes{doca_.cqAttrEnd};
    return doca_.check(
        all({[&] { return doca_.cqAttr(&attributes.object); },
             [&] { return doca_.createUar(device_->device(), kDedicatedUar, &cqUar_); },
             [&] { return doca_.cqExternal(attributes.object, 1); },
             [&] { return doca_.cqUmem(attributes.object, completions_.umem, 0); },
             [&] { return doca_.cqSize(attributes.object, kSlots); },
             [&] { return doca_.cqOverrun(attributes.object, 1); },
             [&] { return doca_.cqUar(attributes.object, cqUar_); },
             [&] { return doca_.createCq(device_->context(), attributes.object, &cq_); }}),
        "making a completion queue");
}

Status Queue::makePair() {
    NIXL_RETURN_IF_ERROR(makeRing(kRequestsSize + kReceiveRoom, "requests", requests_));
    NIXL_RETURN_IF_ERROR(makeRing(kQueuePage, "a doorbell record", record_));
    Guard attributes{doca_.qpInitEnd};
    NIXL_RETURN_IF_ERROR(doca_.check(
        all({[&] { return doca_.qpInit(&attributes.object); },
             [&] { return doca_.createUar(device_->device(), kDedicatedUar, &qpUar_); },
             [&] { return doca_.qpExternal(attributes.object, 1); },
             [&] { return doca_.qpUar(attributes.object, qpUar_); },
             [&] { return doca_.qpUmem(attributes.object, requests_.umem, 0); },
             [&] { return doca_.qpRecord(attributes.object, record_.umem, 0); },
             [&] { return doca_.qpPd(attributes.object, device_->pd()); },
             [&] { return doca_.qpSends(attributes.object, kSlots); },
             [&] { return doca_.qpReceives(attributes.object, kReceives); },
             [&] { return doca_.qpType(attributes.object, kReliable); },
             [&] { return doca_.qpSendCq(attributes.object, cq_); },
             [&] { return doca_.qpSendSges(attributes.object, 1); },
             [&] { return doca_.qpReceiveSges(attributes.object, 1); },
             [&] { return doca_.qpReceiveCq(attributes.object, cq_); },
             [&] { return doca_.createQp(device_->context(), attributes.object, &qp_); }}),
        "making a queue pair"));
    number_ = doca_.qpNumber(qp_);
    return {};
}

Status Queue::makeState() {
    void* sends = nullptr;
    void* receives = nullptr;
    uint32_t send_count = 0;
    uint32_t receive_count = 0;
    uint32_t receive_size = 0;
    doca_.qpRings(qp_, &sends, &send_count, &receives, &receive_count, &receive_size);
    const uint64_t offset = static_cast<char*>(sends) - static_cast<char*>(receives);
    if (send_count != kSlots || offset > kReceiveRoom) {
        return Status::backend("GPUNETIO: DOCA made a queue of " + std::to_string(send_count) +
                               " requests at " + std::to_string(offset) + ", not of " +
                               std::to_string(kSlots));
    }
    const auto doorbell = reinterpret_cast<uint64_t>(doca_.qpDoorbell(qp_));
    void* const page = reinterpret_cast<void*>(doorbell & ~(kQueuePage - 1));
    Result<uint64_t> mapped = device_->cuda().mapRegisters(page);
    if (!mapped.ok()) {
        return mapped.status();
    }
    registers_ = page;
    auto memory = sharedMemory(device_->devices(), device_->options().gpu, sizeof(SendQueue));
    if (!memory.ok()) {
        return memory.status();
    }
    state_ = std::move(memory).value();
    SendQueue state;
    state.requests = reinterpret_cast<uint64_t>(requests_.address) + offset;
    state.completions = reinterpret_cast<uint64_t>(completions_.address);
    state.record = reinterpret_cast<uint64_t>(record_.address);
    state.doorbell = mapped.value() + doorbell % kQueuePage;
    state.slots = kSlots;
    state.number = number_;
    std::memcpy(state_->data(), &state, sizeof(state));
    return {};
}

Status Queue::setPath(void* attributes, void* address, const QueueAddress& peer) {
    DocaGid gid{};
    std::memcpy(gid.raw, peer.gid.data(), peer.gid.size());
    return doca_.check(
        all({[&] { return doca_.ahType(address, device_->ethernet() ? kIpv4 : kNoGrh); },
             [&] { return doca_.ahGidIndex(address, device_->options().gidIndex); },
             [&] { return doca_.ahHops(address, 255); }, [&] { return doca_.ahGid(address, gid); },
             [&] { return doca_.ahLid(address, peer.lid); },
             [&] { return doca_.setAddress(attributes, address); },
             [&] { return doca_.setPeerNumber(attributes, peer.number); },
             [&] { return doca_.setMtu(attributes, kMtu1024); },
             [&] { return doca_.setReceivePsn(attributes, 0); },
             [&] { return doca_.setSendPsn(attributes, 0); },
             [&] { return doca_.setPort(attributes, 1); },
             [&] { return doca_.setAckTimeout(attributes, 14); },
             [&] { return doca_.setRetries(attributes, 7); },
             [&] { return doca_.setRnrRetries(attributes, 1); },
             [&] { return doca_.setRnrTimer(attributes, 1); },
             [&] { return doca_.setRemoteWrite(attributes, 1); },
             [&] { return doca_.setRemoteRead(attributes, 1); },
             [&] { return doca_.setAtomic(attributes, 1); }}),
        "the way to the peer's queue pair");
}

Status Queue::modify(void* attributes) {
    const auto to = [&](int state, int mask) {
        return all({[&] { return doca_.setState(attributes, state); },
                    [&] { return doca_.modifyQp(qp_, attributes, NEXT_STATE | mask); }});
    };
    return doca_.check(
        all({[&] { return to(kInit, REMOTE_WRITE | REMOTE_READ | ATOMIC | PKEY_INDEX | PORT); },
             [&] {
                 return to(kReadyToReceive, RECEIVE_PSN | PEER_NUMBER | MTU | ADDRESS | RNR_TIMER);
             },
             [&] { return to(kReadyToSend, SEND_PSN | ACK_TIMEOUT | RETRIES | RNR_RETRIES); }}),
        "connecting a queue pair");
}

Status Queue::connect(const QueueAddress& peer) {
    Guard address{doca_.ahEnd};
    Guard attributes{doca_.qpAttrEnd};
    NIXL_RETURN_IF_ERROR(
        doca_.check(all({[&] { return doca_.ah(device_->context(), &address.object); },
                         [&] { return doca_.qpAttr(&attributes.object); }}),
                    "connecting a queue pair"));
    NIXL_RETURN_IF_ERROR(setPath(attributes.object, address.object, peer));
    return modify(attributes.object);
}

void Queue::fail() {
    Guard attributes{doca_.qpAttrEnd};
    if (doca_.qpAttr(&attributes.object) == 0 && doca_.setState(attributes.object, kError) == 0) {
        doca_.modifyQp(qp_, attributes.object, NEXT_STATE);
    }
}

Queue::~Queue() {
    const DeviceScope scope(device_->devices(), device_->options().gpu);
    if (registers_ != nullptr) {
        device_->cuda().unmapRegisters(registers_);
    }
    if (qp_ != nullptr) {
        doca_.destroyQp(qp_);
    }
    if (cq_ != nullptr) {
        doca_.destroyCq(cq_);
    }
    for (void* const uar : {qpUar_, cqUar_}) {
        if (uar != nullptr) {
            doca_.destroyUar(uar);
        }
    }
    for (Ring* const ring : {&record_, &requests_, &completions_}) {
        endRing(*ring);
    }
}

}  // namespace nixl::gpunetio
