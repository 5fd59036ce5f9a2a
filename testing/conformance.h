// One suite that every backend passes: what nixl/backend.h promises, tried out. A backend joins
// with one subject, in about 30 lines (docs/backend_guide.md):
//
//   Subject posix() {
//       Subject subject("Posix", "POSIX", Subject::STORAGE);
//       subject.remote = [](uint64_t size) { return makeFileBuffer(size); };
//       return subject;
//   }
//   const bool kJoined = joinConformance(posix());
//
// Each check becomes one GoogleTest test, Conformance_Posix.<check>. What a backend cannot do is
// declared with its reason, printed, and reported as skipped: nothing is left out silently.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/wrappers.h"
#include "testing/buffers.h"

namespace nixl::testkit {

using BufferMaker = std::function<std::unique_ptr<Buffer>(uint64_t size)>;

// A limit of a backend: with these parameters and so many calls, one is refused with a Status or
// the transfer fails; nothing else happens.
struct Limit {
    enum class What : uint8_t { REGISTRATIONS, PENDING_POSTS, TRANSFER_BYTES };
    std::string name;
    What what;
    std::map<std::string, std::string> parameters;
    uint64_t most = 0;  // so many are accepted
};

struct Deviation {
    std::string check;  // as in the test's name
    std::string reason;
};

struct Subject {
    enum Kind : uint8_t { NETWORK, STORAGE };
    Subject(std::string test_name, std::string plugin_name, Kind backend_kind)
        : name(std::move(test_name)), plugin(std::move(plugin_name)), kind(backend_kind) {}

    std::string name;    // of the tests
    std::string plugin;  // found through the registry; `table` where it is none
    Kind kind;
    const PluginTable* table = nullptr;
    std::map<std::string, std::string> parameters;
    backend::FaultPlan fault;  // wraps every backend in it
    BufferMaker local = [](uint64_t size) { return makeHostBuffer(size); };
    BufferMaker remote = [](uint64_t size) { return makeHostBuffer(size); };
    uint64_t largest = 64 << 20;  // bytes of the largest transfer
    unsigned reposts = 1000;
    unsigned threads = 8;
    // Transfers must begin, and be as long as, a multiple of it: 1 but for raw devices.
    uint64_t granularity = 1;
    // Keeps a transfer of the largest size pending long enough to cancel it, where needed.
    std::map<std::string, std::string> slowParameters;
    std::vector<Limit> limits;
    std::vector<Deviation> deviations;
    // Reason not to run anything here (no device, no server); empty: run.
    std::function<std::string()> unavailable = [] { return std::string(); };
};

// Registers the tests of `subject` with GoogleTest; call it before main, from a global constant.
bool joinConformance(Subject subject);

}  // namespace nixl::testkit
