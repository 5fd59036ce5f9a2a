// The conformance suite over the test backends: plain, inline, under faults, traced.
#include "testing/conformance.h"
#include "testing/memory_backend.h"
#include "testing/object_backend.h"

namespace nixl::testkit {
namespace {

Subject memory() {
    Subject subject("Memory", "MEMORY", Subject::NETWORK);
    subject.table = &memoryBackendTable();
    subject.slowParameters = {{"delay", "2ms"}};
    subject.limits = {
        {"max_regions", Limit::What::REGISTRATIONS, {{"max_regions", "3"}}, 3},
        {"max_pending", Limit::What::PENDING_POSTS, {{"max_pending", "2"}, {"delay", "1s"}}, 2}};
    return subject;
}

Subject memoryInline() {
    Subject subject("MemoryInline", "MEMORY", Subject::NETWORK);
    subject.table = &memoryBackendTable();
    subject.parameters = {{"inline_limit", "1G"}};
    return subject;
}

// Without a thread of its own.
Subject memoryManual() {
    Subject subject("MemoryManual", "MEMORY", Subject::NETWORK);
    subject.table = &memoryBackendTable();
    subject.parameters = {{"manual", "on"}};
    subject.largest = 4 << 20;
    subject.reposts = 100;
    return subject;
}

// Ends that come late and twice must change nothing for the core.
Subject memoryLate() {
    Subject subject = memory();
    subject.name = "MemoryLate";
    subject.largest = 4 << 20;
    subject.reposts = 200;
    subject.fault.seed = 3;
    subject.fault.delay = 2;
    subject.fault.duplicate = 2;
    subject.fault.delayTime = std::chrono::microseconds(300);
    return subject;
}

Subject memoryTraced() {
    Subject subject = memory();
    subject.name = "MemoryTraced";
    subject.largest = 4 << 20;
    subject.reposts = 100;
    subject.parameters = {{"nixl_trace", "on"}};
    return subject;
}

Subject objects() {
    Subject subject("Objects", "OBJECTS", Subject::STORAGE);
    subject.table = &objectBackendTable();
    subject.remote = [](uint64_t size) {
        static std::atomic<int> number{0};
        return makeObjectBuffer("test", "key" + std::to_string(++number), size);
    };
    subject.limits = {{"max_object", Limit::What::TRANSFER_BYTES, {{"max_object", "1M"}}, 1 << 20}};
    return subject;
}

Subject objectsTraced() {
    Subject subject = objects();
    subject.name = "ObjectsTraced";
    subject.largest = 4 << 20;
    subject.reposts = 100;
    subject.parameters = {{"nixl_trace", "OBJECTS"}, {"use_pool", "no"}};
    return subject;
}

const bool kJoined[] = {joinConformance(memory()),       joinConformance(memoryInline()),
                        joinConformance(memoryManual()), joinConformance(memoryLate()),
                        joinConformance(memoryTraced()), joinConformance(objects()),
                        joinConformance(objectsTraced())};

}  // namespace
}  // namespace nixl::testkit
