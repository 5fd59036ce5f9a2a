// See stream_model.h.
#include "testing/sim/stream_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nixl::sim {

using namespace peer;  // NOLINT(google-build-using-namespace)

StreamModel::StreamModel(World& world, uint64_t region, bool calm)
    : world_(world),
      region_(region),
      calm_(calm),
      remote_(kCells * kCellBytes),
      local_(kCells * kCellBytes) {
    world_.access.enter(region_, remote_.data(), remote_.size());
}

void StreamModel::open() {
    const base::Digest key{7};
    client_ = std::make_unique<StreamClient>("bob", key);
    target_ = std::make_unique<StreamTarget>(world_.access, key);
    toTarget_.clear();
    toInitiator_.clear();
}

void StreamModel::fillCell(size_t at) {
    for (size_t i = at * kCellBytes; i < (at + 1) * kCellBytes; ++i) {
        local_[i] = static_cast<char>(world_.random());
        if (!revoked_) {
            remote_[i] = static_cast<char>(world_.random());
        }
    }
}

std::optional<size_t> StreamModel::submit() {
    if (client_ == nullptr) {
        open();
    }
    const size_t at = world_.pick(kCells);
    Cell& cell = cells_[at];
    if (cell.busy || cell.held || !client_->hasRoom()) {
        return std::nullopt;
    }
    cell.busy = true;
    cell.canary = false;
    cell.op = world_.pick(2) == 0 ? OpType::READ : OpType::WRITE;
    fillCell(at);
    const auto local = reinterpret_cast<uint64_t>(local_.data() + at * kCellBytes);
    const auto remote = reinterpret_cast<uint64_t>(remote_.data() + at * kCellBytes);
    Request request;
    request.op = cell.op;
    request.grant = grantId(kGrant);
    request.flags = world_.pick(2) == 0 ? kRequestChecksum : 0;
    request.regions = {{region_, 1}};
    const uint64_t pieces = 1 + world_.pick(3);
    const uint64_t size = kCellBytes / pieces;
    request.bytes = size * pieces;
    request.runs = {{remote, size, size, pieces, 0}};
    const std::vector<MemoryRun> here = {{local, size, size, pieces, 0}};
    client_->submit(
        {std::make_shared<PreparedRequest>(request, kGrant, here, 0), ++world_.nextId, cell.owner});
    ++world_.outcome.transfers;
    return cell.op == OpType::WRITE ? std::optional(at) : std::nullopt;
}

template <typename From>
void StreamModel::produce(From& from, std::string& pipe) {
    if (pipe.size() > kPipeLimit) {
        return;
    }
    iovec vectors[8];
    const size_t count = from.output(vectors, 1 + world_.pick(8));
    size_t limit = 1 + world_.pick(9000);
    size_t put = 0;
    for (size_t i = 0; i < count && limit > 0; ++i) {
        const size_t n = std::min(vectors[i].iov_len, limit);
        pipe.append(static_cast<char*>(vectors[i].iov_base), n);
        put += n;
        limit -= n;
        if (n < vectors[i].iov_len) {
            break;
        }
    }
    from.sent(put);
}

template <typename To>
void StreamModel::consume(To& to, std::string& pipe) {
    iovec vectors[8];
    const size_t count = to.inputSpace(vectors, 2 + world_.pick(6));
    if (count == 0) {
        return;
    }
    size_t limit = std::min<size_t>(pipe.size(), 1 + world_.pick(9000));
    size_t got = 0;
    for (size_t i = 0; i < count && limit > 0; ++i) {
        const size_t n = std::min(vectors[i].iov_len, limit);
        std::memcpy(vectors[i].iov_base, pipe.data() + got, n);
        got += n;
        limit -= n;
    }
    pipe.erase(0, got);
    if (const Status status = to.received(got); !status.ok()) {
        world_.broken("a data connection between friends violated the protocol: " +
                      status.message());
    }
}

void StreamModel::move() {
    if (client_ == nullptr) {
        return;
    }
    switch (world_.pick(4)) {
        case 0:
            if (client_->wantsOutput()) {
                produce(*client_, toTarget_);
            }
            break;
        case 1:
            consume(*target_, toTarget_);
            break;
        case 2:
            if (target_->wantsOutput()) {
                produce(*target_, toInitiator_);
            }
            break;
        default:
            consume(*client_, toInitiator_);
            break;
    }
    finishParts();
}

void StreamModel::finishParts() {
    for (FinishedPart& finished : client_->takeFinished()) {
        const auto cell = std::find_if(cells_.begin(), cells_.end(), [&](const Cell& one) {
            return one.owner == finished.part.owner;
        });
        if (cell == cells_.end() || !cell->busy) {
            world_.broken("a transfer ended twice");
            return;
        }
        cell->busy = false;
        const auto at = static_cast<size_t>(cell - cells_.begin());
        if (!finished.status.ok()) {
            if (calm_ && !cell->canary && !world_.targetRestarted) {
                world_.broken("another peer's fault ended a transfer: " +
                              finished.status.message());
            }
            continue;
        }
        if (cell->canary) {
            world_.broken("a canceled transfer is DONE");
        } else if (std::memcmp(local_.data() + at * kCellBytes, remote_.data() + at * kCellBytes,
                               finished.part.request->bytes) != 0) {
            world_.broken("DONE, and the bytes are not there");
        } else if (cell->op == OpType::WRITE) {
            cell->held = true;
            done_.push_back(at);
        }
    }
}

std::vector<size_t> StreamModel::takeDone() {
    return std::exchange(done_, {});
}

bool StreamModel::arrived(size_t cell) const {
    return std::memcmp(local_.data() + cell * kCellBytes, remote_.data() + cell * kCellBytes,
                       kCellBytes) == 0;
}

void StreamModel::cancel() {
    const size_t at = world_.pick(kCells);
    if (client_ == nullptr || !cells_[at].busy || cells_[at].canary) {
        return;
    }
    client_->cancel(cells_[at].owner.get());
    cells_[at].canary = true;
    std::memset(local_.data() + at * kCellBytes, 'c', kCellBytes);
    finishParts();
}

void StreamModel::revoke() {
    const memory::RegionPtr region = world_.access.get(region_);
    if (revoked_ || !region) {
        return;
    }
    revoked_ = true;
    if (world_.bug != Bug::NO_FENCE) {
        region->revoke();
        if (region->pins() != 0) {
            world_.broken("a region is pinned while nothing moves");
        }
    }
    fenced_ = remote_;
}

void StreamModel::fail() {
    if (client_ != nullptr) {
        client_->fail(Status::disconnected("cut"));
        finishParts();
        client_.reset();
        target_.reset();
    }
}

bool StreamModel::busy() const {
    return std::any_of(cells_.begin(), cells_.end(),
                       [](const Cell& cell) { return cell.busy || cell.held; });
}

void StreamModel::check() {
    if (revoked_ && fenced_ != remote_) {
        world_.broken("bytes changed after the region was deregistered");
    }
    for (size_t at = 0; at < kCells; ++at) {
        if (cells_[at].canary) {
            const char* const begin = local_.data() + at * kCellBytes;
            if (begin[0] != 'c' || std::memcmp(begin, begin + 1, kCellBytes - 1) != 0) {
                world_.broken("bytes changed after a cancel returned");
            }
        }
    }
}

}  // namespace nixl::sim
