// A central store of metadata blobs: what exchange_etcd, exchange_file and a framework's own store
// have in common. Thread-safe; no call blocks; each callback is called once, on a thread of the
// store, with no lock held. The destructor ends what is under way: callbacks get a status, and none
// is called afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nixl/error.h"

namespace nixl::exchange {

struct StoreEntry {
    std::string key;
    std::string value;
    uint64_t revision = 0;  // grows with every change of this key; 0 where the store has none
};

// What a watch reports: first what is there, then SYNCED, then each change in order. After a lost
// connection the watch catches up by itself; where it cannot, it starts anew with RESET.
struct StoreEvent {
    enum class Kind : uint8_t { PUT, REMOVED, SYNCED, RESET, FAILED };
    Kind kind = Kind::PUT;
    StoreEntry entry;  // PUT; REMOVED: its key
    Status status;     // FAILED: why; the watch goes on trying
};

// Ends the watch when destroyed; no callback afterwards.
class StoreWatch {
  public:
    virtual ~StoreWatch() = default;
};

class MetadataStore {
  public:
    virtual ~MetadataStore() = default;

    // For messages: "etcd at http://127.0.0.1:2379".
    virtual std::string describe() const = 0;

    enum class Lifetime : uint8_t {
        OWNER,  // goes when this process ends or dies (a lease), where the store can do that
        KEPT,   // stays until removed
    };
    virtual void put(std::string key,
                     std::string value,
                     Lifetime lifetime,
                     std::function<void(Status)> done) = 0;
    virtual void get(std::string key,
                     std::function<void(Result<std::optional<StoreEntry>>)> done) = 0;
    virtual void list(std::string prefix,
                      std::function<void(Result<std::vector<StoreEntry>>)> done) = 0;
    // A key that is not there is removed: OK.
    virtual void remove(std::string key, std::function<void(Status)> done) = 0;
    // Null where the store cannot watch (a framework's store); then it is asked now and then.
    virtual std::unique_ptr<StoreWatch> watch(std::string prefix,
                                              std::function<void(StoreEvent)> event) = 0;
};

}  // namespace nixl::exchange
