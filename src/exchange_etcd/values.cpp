// See values.h.
#include "exchange_etcd/values.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include <sys/random.h>

#include "base/crc32c.h"

namespace nixl::exchange_etcd {
namespace {

using exchange::StoreEntry;

constexpr const char* kMark = "NIXLSPLIT1 ";
constexpr const char* kParts = "/parts/";
constexpr size_t kGeneration = 16;  // hexadecimal digits
constexpr size_t kNumber = 6;       // decimal digits
constexpr size_t kSmallestPart = 16U << 10;
constexpr int64_t kPage = 200;  // entries of one answer

std::string newGeneration() {
    uint64_t random = 0;
    static_cast<void>(getrandom(&random, sizeof random, 0));
    std::array<char, kGeneration + 1> text{};
    static_cast<void>(std::snprintf(text.data(), text.size(), "%016llx",
                                    static_cast<unsigned long long>(random)));
    return text.data();
}

std::string partKey(const std::string& key, const std::string& generation, size_t number) {
    std::array<char, 24> text{};
    static_cast<void>(std::snprintf(text.data(), text.size(), "/%06zu", number));
    return key + kParts + generation + text.data();
}

struct Header {
    std::string generation;
    size_t parts = 0;
    size_t bytes = 0;
    uint32_t checksum = 0;
};

std::optional<Header> readHeader(const std::string& value) {
    if (!value.starts_with(kMark) || value.size() > 100) {
        return std::nullopt;
    }
    Header out;
    std::array<char, kGeneration + 1> generation{};
    if (std::sscanf(value.c_str(), "NIXLSPLIT1 %16[0-9a-f] %zu %zu %u", generation.data(),
                    &out.parts, &out.bytes, &out.checksum) != 4 ||
        out.bytes > Values::kMaxValue) {
        return std::nullopt;
    }
    out.generation = generation.data();
    return out;
}

Json rangeOf(const std::string& from, const std::string& end) {
    return Json{{"key", toBase64(from)}, {"range_end", toBase64(end)}};
}

Json deleteOf(const std::string& from, const std::string& end) {
    return Json{{"request_delete_range", rangeOf(from, end)}};
}

StoreEntry entryOf(const Json& kv) {
    return {bytesOf(kv, "key"), bytesOf(kv, "value"),
            static_cast<uint64_t>(numberOf(kv, "mod_revision"))};
}

bool replaced(const Json& answer, const StoreEntry& entry) {
    const Json& kvs = field(answer, "kvs");
    return kvs.is_array() && (kvs.empty() || entryOf(kvs[0]).revision != entry.revision);
}

}  // namespace

bool Assembler::isPart(const std::string& key) {
    const size_t tail = std::char_traits<char>::length(kParts) + kGeneration + 1 + kNumber;
    return key.size() > tail && key.compare(key.size() - tail, 7, kParts) == 0 &&
           key[key.size() - kNumber - 1] == '/' &&
           key.find_first_not_of("0123456789", key.size() - kNumber) == std::string::npos;
}

std::optional<std::string> Assembler::whole(const std::string& key, std::string value) {
    const std::optional<Header> header = readHeader(value);
    if (!header.has_value()) {
        return value;
    }
    std::string joined;
    for (size_t i = 0; i < header->parts; ++i) {
        const auto part = parts_.find(partKey(key, header->generation, i));
        if (part == parts_.end() || joined.size() + part->second.size() > header->bytes) {
            return std::nullopt;
        }
        joined += part->second;
        parts_.erase(part);
    }
    if (joined.size() != header->bytes || base::crc32c(joined) != header->checksum) {
        return std::nullopt;
    }
    return joined;
}

struct Values::Split {
    Put what;
    Done done;
    std::string generation;
    size_t partSize = 0;
    size_t next = 0;
};

void Values::put(const Put& what, Done done) {
    if (what.value->size() > kMaxValue || what.key.size() > kMaxKey) {
        return done(Status::invalidParam(
            client_.describe() + ": a value of " + std::to_string(what.value->size()) +
            " bytes under a key of " + std::to_string(what.key.size()) +
            " bytes; at most 256 MiB and 8192 bytes are taken"));
    }
    if (what.value->size() <= partSize_) {
        return putOne(what, [this, what, done = std::move(done)](const Status& status) {
            if (status.message().find("too large") != std::string::npos &&
                partSize_ > kSmallestPart && what.value->size() > kSmallestPart) {
                partSize_ = std::max(kSmallestPart, std::min(partSize_, what.value->size()) / 2);
                return put(what, done);
            }
            if (status.ok() && split_.erase(what.key) != 0) {
                const std::string all = what.key + kParts;
                client_.call("/v3/kv/deleterange", rangeOf(all, rangeEnd(all)),
                             [done](const Result<Json>&) { done({}); });
                return;
            }
            done(status);
        });
    }
    split_.insert(what.key);
    auto split = std::make_shared<Split>();
    split->what = what;
    split->done = std::move(done);
    split->generation = newGeneration();
    split->partSize = partSize_;
    putParts(split);
}

void Values::putOne(const Put& what, Done done) {
    Json put{{"key", toBase64(what.key)}, {"value", toBase64(*what.value)}};
    if (what.lease != 0) {
        put["lease"] = std::to_string(what.lease);
    }
    const auto ended = [done = std::move(done)](const Result<Json>& answer) {
        done(answer.ok() ? Status() : answer.status());
    };
    if (!what.onlyAbsent) {
        return client_.call("/v3/kv/put", put, ended);
    }
    const Json absent{
        {"key", toBase64(what.key)}, {"target", "VERSION"}, {"result", "EQUAL"}, {"version", "0"}};
    client_.call("/v3/kv/txn",
                 Json{{"compare", Json::array({absent})},
                      {"success", Json::array({Json{{"request_put", put}}})}},
                 ended);
}

// One part after the other, then the header, then what is left of earlier ones goes.
void Values::putParts(const std::shared_ptr<Split>& split) {
    const std::string& key = split->what.key;
    const std::string& value = *split->what.value;
    const size_t parts = (value.size() + split->partSize - 1) / split->partSize;
    if (split->next < parts) {
        const size_t number = split->next++;
        Put part;
        part.key = partKey(key, split->generation, number);
        part.value = std::make_shared<const std::string>(
            value.substr(number * split->partSize, split->partSize));
        part.lease = split->what.lease;
        return putOne(part, [this, split](const Status& status) {
            if (status.ok()) {
                return putParts(split);
            }
            if (status.message().find("too large") != std::string::npos &&
                split->partSize > kSmallestPart) {
                partSize_ = std::max(kSmallestPart, split->partSize / 2);
                return put(split->what, split->done);
            }
            split->done(status);
        });
    }
    Put header = split->what;
    header.value = std::make_shared<const std::string>(
        kMark + split->generation + " " + std::to_string(parts) + " " +
        std::to_string(value.size()) + " " + std::to_string(base::crc32c(value)));
    putOne(header, [this, split](const Status& status) {
        if (!status.ok()) {
            return split->done(status);
        }
        const std::string all = split->what.key + kParts;
        const std::string ours = all + split->generation;
        client_.call("/v3/kv/txn",
                     Json{{"success", Json::array({deleteOf(all, ours),
                                                   deleteOf(rangeEnd(ours), rangeEnd(all))})}},
                     [split](const Result<Json>&) { split->done({}); });
    });
}

void Values::remove(const std::string& key, int64_t lease, Done done) {
    Json txn{{"success", Json::array({Json{{"request_delete_range", Json{{"key", toBase64(key)}}}},
                                      deleteOf(key + kParts, rangeEnd(key + kParts))})}};
    if (lease != 0) {
        txn["compare"] = Json::array({Json{{"key", toBase64(key)},
                                           {"target", "LEASE"},
                                           {"result", "EQUAL"},
                                           {"lease", std::to_string(lease)}}});
    }
    client_.call("/v3/kv/txn", txn, [done = std::move(done)](const Result<Json>& answer) {
        done(answer.ok() ? Status() : answer.status());
    });
}

void Values::get(const std::string& key,
                 std::function<void(Result<std::optional<StoreEntry>>)> done) {
    client_.call("/v3/kv/range", Json{{"key", toBase64(key)}},
                 [this, key, done = std::move(done)](const Result<Json>& answer) {
                     if (!answer.ok()) {
                         return done(answer.status());
                     }
                     const Json& kvs = field(answer.value(), "kvs");
                     if (!kvs.is_array() || kvs.empty()) {
                         return done(std::optional<StoreEntry>());
                     }
                     StoreEntry entry = entryOf(kvs[0]);
                     if (!readHeader(entry.value).has_value()) {
                         return done(std::optional<StoreEntry>(std::move(entry)));
                     }
                     // Header and parts as of one moment.
                     list(key + kParts, [this, key, entry, done](Result<Listing> parts) mutable {
                         if (!parts.ok()) {
                             return done(parts.status());
                         }
                         Assembler assembler;
                         for (StoreEntry& part : parts.value().entries) {
                             assembler.addPart(part.key, std::move(part.value));
                         }
                         if (std::optional<std::string> whole = assembler.whole(key, entry.value)) {
                             entry.value = std::move(*whole);
                             return done(std::optional<StoreEntry>(std::move(entry)));
                         }
                         client_.call("/v3/kv/range", Json{{"key", toBase64(key)}},
                                      [this, key, entry, done](const Result<Json>& again) {
                                          if (again.ok() && replaced(again.value(), entry)) {
                                              return get(key, done);
                                          }
                                          done(Status::invalidParam(
                                              client_.describe() + ": the value of \"" + key +
                                              "\" lacks parts, or is damaged"));
                                      });
                     });
                 });
}

struct Values::Pages {
    std::string prefix;
    std::string from;
    Listing listing;
    std::function<void(Result<Listing>)> done;
};

void Values::list(const std::string& prefix, std::function<void(Result<Listing>)> done) {
    auto pages = std::make_shared<Pages>();
    pages->prefix = prefix;
    pages->from = prefix;
    pages->done = std::move(done);
    nextPage(pages);
}

void Values::nextPage(const std::shared_ptr<Pages>& pages) {
    Json range = rangeOf(pages->from, rangeEnd(pages->prefix));
    range["limit"] = std::to_string(kPage);
    if (pages->listing.revision != 0) {
        range["revision"] = std::to_string(pages->listing.revision);
    }
    client_.call("/v3/kv/range", range, [this, pages](const Result<Json>& answer) {
        if (!answer.ok()) {
            return pages->done(answer.status());
        }
        if (pages->listing.revision == 0) {
            pages->listing.revision = numberOf(field(answer.value(), "header"), "revision");
        }
        for (const Json& kv : field(answer.value(), "kvs")) {
            pages->listing.entries.push_back(entryOf(kv));
        }
        if (!flagOf(answer.value(), "more") || pages->listing.entries.empty()) {
            return pages->done(std::move(pages->listing));
        }
        pages->from = pages->listing.entries.back().key + std::string(1, '\0');
        nextPage(pages);
    });
}

std::vector<StoreEntry> Values::assemble(Listing listing, Assembler& assembler) {
    for (StoreEntry& entry : listing.entries) {
        if (Assembler::isPart(entry.key)) {
            assembler.addPart(entry.key, std::move(entry.value));
        }
    }
    std::vector<StoreEntry> out;
    for (StoreEntry& entry : listing.entries) {
        if (Assembler::isPart(entry.key)) {
            continue;
        }
        if (std::optional<std::string> whole = assembler.whole(entry.key, std::move(entry.value))) {
            entry.value = std::move(*whole);
            out.push_back(std::move(entry));
        }
    }
    return out;
}

}  // namespace nixl::exchange_etcd
