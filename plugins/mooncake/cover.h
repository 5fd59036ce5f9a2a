// What of an agent's memory is registered with an engine: ranges that share no byte, since the
// engine takes no others, made of registrations that may overlap. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nixl/error.h"

namespace nixl::mooncake {

class Cover {
  public:
    using Range = std::pair<uint64_t, uint64_t>;  // begin, end
    // The engine's calls; a Status names what it refuses. `lost`: it takes no more what it had.
    struct Calls {
        std::function<Status(const Range&)> add;
        std::function<void(const Range&)> remove;
        std::function<void(const Status&)> lost;
    };
    explicit Cover(Calls calls) : calls_(std::move(calls)) {}

    // Where inside the range one piece ends and the next begins: the engine moves nothing across.
    // They stay as long as the registration does. All or nothing.
    Result<std::vector<uint64_t>> add(const Range& range);
    // Nothing but what registrations hold stays with the engine. Where a piece is made smaller,
    // what remains of it is unknown to the engine for a moment. REQUIRES: added before
    void remove(const Range& range);
    std::vector<Range> pieces() const;

  private:
    struct Piece {
        uint64_t end = 0;
        std::multiset<Range> users;  // registrations that share a byte with it
        size_t whole = 0;            // of them those that hold all of it
    };
    using Pieces = std::map<uint64_t, Piece>;  // by begin

    Pieces::iterator firstIn(const Range& range);
    void trim(Pieces::iterator at);
    Status fill(const Range& range, std::vector<Range>& added);
    static std::vector<Range> live(uint64_t begin, const Piece& piece);

    const Calls calls_;
    mutable std::mutex mutex_;
    Pieces pieces_;  // guarded by mutex_
};

}  // namespace nixl::mooncake
