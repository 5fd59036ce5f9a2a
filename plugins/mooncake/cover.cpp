// See cover.h.
#include "cover.h"

#include <algorithm>

namespace nixl::mooncake {
namespace {

bool holds(const Cover::Range& outer, const Cover::Range& inner) {
    return outer.first <= inner.first && outer.second >= inner.second;
}

bool meets(const Cover::Range& one, const Cover::Range& other) {
    return one.first < other.second && other.first < one.second;
}

}  // namespace

// The first piece that shares a byte with the range, or lies behind it.
Cover::Pieces::iterator Cover::firstIn(const Range& range) {
    auto at = pieces_.upper_bound(range.first);
    if (at != pieces_.begin() && std::prev(at)->second.end > range.first) {
        --at;
    }
    return at;
}

// The parts of a piece that registrations hold, in order.
std::vector<Cover::Range> Cover::live(uint64_t begin, const Piece& piece) {
    std::vector<Range> parts;
    for (const Range& user : piece.users) {  // by begin
        const Range part{std::max(user.first, begin), std::min(user.second, piece.end)};
        if (!parts.empty() && part.first <= parts.back().second) {
            parts.back().second = std::max(parts.back().second, part.second);
        } else {
            parts.push_back(part);
        }
    }
    return parts;
}

// Gives back what of a piece no registration holds any more.
void Cover::trim(Pieces::iterator at) {
    const Range whole{at->first, at->second.end};
    const std::vector<Range> parts = live(at->first, at->second);
    if (parts == std::vector<Range>{whole}) {
        return;
    }
    const std::multiset<Range> users = std::move(at->second.users);
    calls_.remove(whole);
    pieces_.erase(at);
    for (const Range& part : parts) {
        if (const Status status = calls_.add(part); !status.ok()) {
            calls_.lost(status);
            continue;
        }
        Piece piece{part.second, {}, 0};
        for (const Range& user : users) {
            if (meets(user, part)) {
                piece.users.insert(user);
                piece.whole += holds(user, part) ? 1 : 0;
            }
        }
        pieces_.emplace(part.first, std::move(piece));
    }
}

// Registers what of the range no piece holds.
Status Cover::fill(const Range& range, std::vector<Range>& added) {
    uint64_t from = range.first;
    auto at = firstIn(range);
    while (from < range.second) {
        const bool more = at != pieces_.end() && at->first < range.second;
        const Range gap{from, more ? std::max(from, at->first) : range.second};
        from = more ? at->second.end : range.second;
        if (gap.first < gap.second) {
            NIXL_RETURN_IF_ERROR(calls_.add(gap));
            added.push_back(gap);
        }
        at = more ? std::next(at) : at;
    }
    return {};
}

Result<std::vector<uint64_t>> Cover::add(const Range& range) {
    const std::lock_guard lock(mutex_);
    std::vector<Range> added;
    if (Status status = fill(range, added); !status.ok()) {
        std::for_each(added.begin(), added.end(), calls_.remove);
        return status;
    }
    for (const Range& piece : added) {
        pieces_.emplace(piece.first, Piece{piece.second, {}, 0});
    }
    std::vector<uint64_t> cuts;
    for (auto at = firstIn(range); at != pieces_.end() && at->first < range.second; ++at) {
        at->second.users.insert(range);
        at->second.whole += holds(range, {at->first, at->second.end}) ? 1 : 0;
        if (at->first > range.first) {
            cuts.push_back(at->first);
        }
    }
    return cuts;
}

void Cover::remove(const Range& range) {
    const std::lock_guard lock(mutex_);
    for (auto at = firstIn(range); at != pieces_.end() && at->first < range.second;) {
        const auto here = at++;
        Piece& piece = here->second;
        if (const auto user = piece.users.find(range); user != piece.users.end()) {
            piece.users.erase(user);
            piece.whole -= holds(range, {here->first, piece.end}) ? 1 : 0;
        }
        if (piece.whole == 0) {
            trim(here);
        }
    }
}

std::vector<Cover::Range> Cover::pieces() const {
    const std::lock_guard lock(mutex_);
    std::vector<Range> all;
    for (const auto& [begin, piece] : pieces_) {
        all.emplace_back(begin, piece.end);
    }
    return all;
}

}  // namespace nixl::mooncake
