// The C interface of Mooncake's transfer engine (transfer_engine_c.h) over the real engine of the
// PyPI package mooncake-transfer-engine-non-cuda 0.3.13.post1, whose engine.so exports the C++
// class alone. What is declared of that class here is what its symbols and behaviour show. Python's
// symbols, which engine.so wants too, are in a file made from its list of them; nothing calls them.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace mooncake {

class Status {
  public:
    ~Status() { delete[] message_; }
    Status(const Status&) = delete;
    Status& operator=(const Status&) = delete;
    int code() const { return code_; }

  private:
    uint16_t code_;
    const char* message_;
};

class Transport {
  public:
    struct TransferRequest {
        int32_t opcode;
        void* source;
        uint64_t target;
        uint64_t offset;
        uint64_t length;
        int32_t retries = 0;
        int32_t hint = 0;
        uint64_t group = UINT64_MAX;
    };
    static_assert(sizeof(TransferRequest) == 56);
    struct TransferStatus {
        int32_t state;
        uint64_t bytes;
    };
};

class TransferEngine {
  public:
    explicit TransferEngine(bool discover);
    ~TransferEngine();
    int init(const std::string& metadata,
             const std::string& name,
             const std::string& host,
             uint64_t port);
    std::string getLocalIpAndPort();
    Transport* installTransport(const std::string& name, void** arguments);
    uint64_t openSegment(const std::string& name);
    int closeSegment(uint64_t segment);
    int syncSegmentCache(const std::string& name);
    int registerLocalMemory(
        void* address, size_t size, const std::string& location, bool remote, bool publish);
    int unregisterLocalMemory(void* address, bool publish);
    uint64_t allocateBatchID(size_t size);
    Status submitTransfer(uint64_t batch, const std::vector<Transport::TransferRequest>& requests);
    Status getTransferStatus(uint64_t batch, size_t task, Transport::TransferStatus& status);
    Status freeBatchID(uint64_t batch);

  private:
    alignas(std::max_align_t) char room_[256];
};

}  // namespace mooncake

namespace {

using mooncake::Transport;

// As transfer_engine_c.h has it.
struct CRequest {
    int32_t opcode;
    void* source;
    int32_t target;
    uint32_t file;
    uint64_t offset;
    uint64_t length;
};
struct CStatus {
    int32_t state;
    uint64_t bytes;
};

mooncake::TransferEngine* of(void* engine) {
    return static_cast<mooncake::TransferEngine*>(engine);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* createTransferEngine(
    const char* metadata, const char* name, const char* host, uint64_t port, int discover) {
    auto* const engine = new mooncake::TransferEngine(discover != 0);
    if (engine->init(metadata, name, host, port) != 0) {
        delete engine;
        return nullptr;
    }
    return engine;
}

void destroyTransferEngine(void* engine) {
    delete of(engine);
}

int getLocalIpAndPort(void* engine, char* text, size_t size) {
    std::snprintf(text, size, "%s", of(engine)->getLocalIpAndPort().c_str());
    return 0;
}

void* installTransport(void* engine, const char* name, void** arguments) {
    return of(engine)->installTransport(name, arguments);
}

int32_t openSegment(void* engine, const char* name) {
    const uint64_t segment = of(engine)->openSegment(name);
    return segment > INT32_MAX ? -1 : static_cast<int32_t>(segment);
}

int32_t openSegmentNoCache(void* engine, const char* name) {
    const int code = of(engine)->syncSegmentCache(name);
    return code != 0 ? code : openSegment(engine, name);
}

int closeSegment(void* engine, int32_t segment) {
    return of(engine)->closeSegment(static_cast<uint64_t>(segment));
}

int syncSegmentCache(void* engine) {
    return of(engine)->syncSegmentCache("");
}

int registerLocalMemory(
    void* engine, void* address, size_t size, const char* location, int remote) {
    return of(engine)->registerLocalMemory(address, size, location, remote != 0, true);
}

int unregisterLocalMemory(void* engine, void* address) {
    return of(engine)->unregisterLocalMemory(address, true);
}

uint64_t allocateBatchID(void* engine, size_t size) {
    return of(engine)->allocateBatchID(size);
}

int submitTransfer(void* engine, uint64_t batch, CRequest* requests, size_t count) {
    std::vector<Transport::TransferRequest> own(count);
    for (size_t i = 0; i < count; ++i) {
        own[i].opcode = requests[i].opcode;
        own[i].source = requests[i].source;
        own[i].target = static_cast<uint64_t>(requests[i].target);
        own[i].offset = requests[i].offset;
        own[i].length = requests[i].length;
    }
    return of(engine)->submitTransfer(batch, own).code();
}

int getTransferStatus(void* engine, uint64_t batch, size_t task, CStatus* status) {
    Transport::TransferStatus own{};
    const int code = of(engine)->getTransferStatus(batch, task, own).code();
    if (code == 0) {
        *status = {own.state, own.bytes};
    }
    return code;
}

int freeBatchID(void* engine, uint64_t batch) {
    return of(engine)->freeBatchID(batch).code();
}

}  // extern "C"
#pragma GCC visibility pop
