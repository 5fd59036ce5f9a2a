// One endpoint with its completion queue and address table: sends messages and moves bytes. What is
// under way ends with it. Threads: one at a time (the rail's lock).
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>

#include "fabric_domain.h"

namespace nixl::fabric {

// What libfabric carries through an operation; its first bytes are the provider's.
struct Context {
    enum class Kind : uint8_t { MOVE, SEND, RECEIVE };
    fi_context2 room{};
    Kind kind = Kind::MOVE;
};

// One fi_read or fi_write.
struct Move : Context {
    void* owner = nullptr;
    void* key = nullptr;
    uint64_t size = 0;
    bool read = false;
};

class EndpointEvents {
  public:
    virtual ~EndpointEvents() = default;
    virtual void moved(Move& move, long error) = 0;
    virtual void received(const Message& message) = 0;
    virtual void sendFailed(uint64_t tag, long error) = 0;
    virtual void broken(long error) = 0;  // the endpoint is of no use any more
};

class Endpoint {
  public:
    // `name`: where it is to be, as an earlier one's name(); empty: anywhere. `receives`: messages
    // that may come before they are read.
    static Result<std::unique_ptr<Endpoint>> open(Domain& domain,
                                                  const std::string& name,
                                                  size_t receives);
    ~Endpoint();
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;

    const std::string& name() const { return name_; }
    int fd() const { return fd_; }  // readable: look; -1: this provider has none
    fid* waitable() { return &queue_->fid; }

    Result<fi_addr_t> insert(const std::string& address);
    void forget(fi_addr_t address);
    // Sends, or keeps it until there is room.
    void send(fi_addr_t to, const Message& message, uint64_t tag = 0);
    bool unsent() const { return !waiting_.empty(); }
    bool unsentTo(fi_addr_t to) const;
    // Keeps messages until it is told not to.
    void hold(bool held) { held_ = held; }
    // 0, or a negative error; -FI_EAGAIN: later.
    struct Target {
        fi_addr_t address = FI_ADDR_UNSPEC;
        uint64_t at = 0;
        uint64_t key = 0;
    };
    long move(
        bool read, void* local, size_t size, void* descriptor, const Target& there, Move& context);
    // Reads what has ended and tells; how much there was.
    size_t look(EndpointEvents& events);

  private:
    struct Slot : Context {
        char* bytes = nullptr;
        uint64_t tag = 0;
    };
    struct Waiting {
        fi_addr_t to;
        std::string bytes;
        uint64_t tag;
    };
    explicit Endpoint(Domain& domain) : domain_(domain) {}
    Status start(const std::string& name, size_t receives);
    Status openQueue(size_t size);
    Status prepareSlots(size_t receives);
    long receive(Slot& slot);
    void flush(EndpointEvents* events);
    void tell(EndpointEvents& events, Context& context, size_t size, long error);

    static constexpr size_t kAddressSize = 256;
    static constexpr size_t kSends = 32;
    static constexpr size_t kBatch = 32;

    Domain& domain_;
    fid_ep* endpoint_ = nullptr;
    fid_cq* queue_ = nullptr;
    fid_av* addresses_ = nullptr;
    int fd_ = -1;
    std::string name_;
    std::vector<char> memory_;
    Domain::Mapped mapped_;
    std::deque<Slot> slots_;
    std::vector<Slot*> free_;
    std::deque<Waiting> waiting_;
    bool held_ = false;
};

}  // namespace nixl::fabric
