// Values under keys of etcd, also those that are longer than one request may be: such a value is
// split over keys below its own, and the key itself says which. On the loop's thread.
//
//   KEY                         "NIXLSPLIT1 GENERATION PARTS BYTES CRC32C"
//   KEY/parts/GENERATION/NNNNNN the parts
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "exchange/store.h"
#include "exchange_etcd/client.h"

namespace nixl::exchange_etcd {

// Puts values together from entries as they come.
class Assembler {
  public:
    // Whether a key is that of a part; such entries are kept until their value is asked for.
    static bool isPart(const std::string& key);
    void addPart(const std::string& key, std::string value) { parts_[key] = std::move(value); }
    void dropPart(const std::string& key) { parts_.erase(key); }
    // The value that belongs to what stands under a key: itself, or its parts joined, which are
    // then forgotten. None where parts are missing or damaged.
    std::optional<std::string> whole(const std::string& key, std::string value);
    void clear() { parts_.clear(); }

  private:
    std::map<std::string, std::string> parts_;
};

class Values {
  public:
    using Done = std::function<void(Status)>;
    static constexpr size_t kMaxValue = 256U << 20;  // bytes
    static constexpr size_t kMaxKey = 8192;

    explicit Values(Client& client) : client_(client) {}

    // `lease` 0: none. `only_absent`: does nothing where the key is there.
    struct Put {
        std::string key;
        std::shared_ptr<const std::string> value;
        int64_t lease = 0;
        bool onlyAbsent = false;
    };
    void put(const Put& what, Done done);
    // Of a key with `lease` only what still belongs to it is removed.
    void remove(const std::string& key, int64_t lease, Done done);
    void get(const std::string& key,
             std::function<void(Result<std::optional<exchange::StoreEntry>>)> done);

    struct Listing {
        std::vector<exchange::StoreEntry> entries;  // raw: parts and headers as they are
        int64_t revision = 0;                       // of the store when it was read
    };
    void list(const std::string& prefix, std::function<void(Result<Listing>)> done);
    // The same, put together.
    static std::vector<exchange::StoreEntry> assemble(Listing listing, Assembler& assembler);

  private:
    struct Split;
    struct Pages;
    void putOne(const Put& what, Done done);
    void putParts(const std::shared_ptr<Split>& split);
    void nextPage(const std::shared_ptr<Pages>& pages);

    Client& client_;
    std::set<std::string> split_;  // keys whose value was last put in parts
    size_t partSize_ = 1U << 20;   // shrinks where a server takes less
};

}  // namespace nixl::exchange_etcd
