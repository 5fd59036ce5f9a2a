// See payload.h.
#include "hicache/payload.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <thread>
#include <tuple>

#include <fcntl.h>
#include <sys/uio.h>

#include "base/crc32c.h"
#include "base/mutex.h"
#include "base/threads.h"
#include "hicache/directory.h"
#include "hicache/system.h"

namespace nixl::hicache {
namespace {

constexpr size_t kCallBytes = 256U << 10;      // of one call: stays in the second-level cache
constexpr size_t kDirectCallBytes = 1U << 20;  // the disk wants more at once
constexpr size_t kJobBytes = 1U << 20;         // what a thread takes at a time
constexpr uint64_t kBytesPerThread = 1 << 20;  // a thread costs about 30 us to start
constexpr unsigned kMaxThreads = 8;
constexpr size_t kMaxVectors = 1024;  // IOV_MAX
constexpr size_t kPad = SIZE_MAX;     // a vector of alignment between two blocks

// Alignment between neighbours is written as zeros and read into nowhere, so that they share a
// call.
const std::array<char, kAlignment> kZeros{};

// Reads and writes jobs on one thread; keeps the file of the last one open.
class Worker {
  public:
    explicit Worker(const MoveOptions& options)
        : options_(options), maxCall_(options.direct ? kDirectCallBytes : kCallBytes) {}

    void run(std::span<Piece> pieces) {
        const Status status = attempt(pieces);
        if (status.ok()) {
            return;
        }
        if (pieces.size() > 1) {  // each by itself, so that only the guilty ones fail
            for (size_t i = 0; i < pieces.size(); ++i) {
                run(pieces.subspan(i, 1));
            }
            return;
        }
        pieces[0].item->state = ItemState::FAILED;
        if (first_.ok()) {
            first_ = status;
        }
    }

    const Status& first() const { return first_; }

  private:
    Status attempt(std::span<Piece> pieces) {
        NIXL_RETURN_IF_ERROR(use(*pieces[0].path));
        sums_.assign(pieces.size(), 0);
        offset_ = pieces[0].item->offset;
        clear();
        for (size_t i = 0; i < pieces.size(); ++i) {
            const Item& item = *pieces[i].item;
            const uint64_t here = offset_ + callBytes_;
            if (item.offset > here) {
                NIXL_RETURN_IF_ERROR(pad(item.offset - here));
            }
            for (const Part& part : pieces[i].parts) {
                NIXL_RETURN_IF_ERROR(add(part, i));
            }
        }
        NIXL_RETURN_IF_ERROR(flush());
        for (size_t i = 0; i < pieces.size(); ++i) {
            Item& item = *pieces[i].item;
            if (options_.checksums && options_.write) {
                item.checksum = sums_[i];
            } else if (options_.checksums && item.checksum != sums_[i]) {
                item.state = ItemState::CORRUPT;
            }
        }
        return {};
    }

    Status use(const std::string& path) {
        if (file_ && path == path_) {
            return {};
        }
        const int flags = (options_.write ? O_WRONLY : O_RDONLY) |
                          (options_.direct ? O_DIRECT : 0) |
                          (options_.create ? O_CREAT | O_EXCL : 0);
        auto opened = openFile(path, flags);
        if (!opened.ok()) {
            return opened.status();
        }
        file_ = std::move(opened).value();
        path_ = path;
        return {};
    }

    Status pad(uint64_t bytes) {
        char* at = options_.write ? const_cast<char*>(kZeros.data()) : sink_.data();
        return push(at, static_cast<size_t>(bytes), kPad);
    }

    Status add(const Part& part, size_t piece) {
        auto* at = reinterpret_cast<char*>(part.address);
        for (uint64_t left = part.length; left > 0;) {
            const size_t size = std::min<uint64_t>(left, maxCall_ - callBytes_);
            NIXL_RETURN_IF_ERROR(push(at, size, piece));
            at += size;
            left -= size;
        }
        return {};
    }

    Status push(char* at, size_t size, size_t piece) {
        vectors_.push_back({at, size});
        owners_.push_back(piece);
        callBytes_ += size;
        return callBytes_ >= maxCall_ || vectors_.size() == kMaxVectors ? flush() : Status();
    }

    // Moves what is gathered and takes its checksums while it is hot.
    Status flush() {
        size_t from = 0;
        const std::vector<iovec> whole = options_.checksums ? vectors_ : std::vector<iovec>();
        for (size_t left = callBytes_; left > 0;) {
            const auto count = static_cast<int>(vectors_.size() - from);
            const auto at = static_cast<off_t>(offset_);
            const ssize_t done = options_.write ? pwritev(file_.get(), &vectors_[from], count, at)
                                                : preadv(file_.get(), &vectors_[from], count, at);
            if (done < 0 && errno == EINTR) {
                continue;
            }
            if (done < 0) {
                return systemError(verb(), path_, errno);
            }
            if (done == 0) {
                return ended(left);
            }
            offset_ += static_cast<uint64_t>(done);
            left -= static_cast<size_t>(done);
            from = advance(from, static_cast<size_t>(done));
        }
        for (size_t i = 0; i < whole.size(); ++i) {
            if (owners_[i] != kPad) {
                uint32_t& sum = sums_[owners_[i]];
                sum = base::crc32c(sum, whole[i].iov_base, whole[i].iov_len);
            }
        }
        clear();
        return {};
    }

    const char* verb() const { return options_.write ? "write" : "read"; }

    Status ended(size_t left) const {
        if (options_.write) {
            return systemError("write", path_, ENOSPC);
        }
        return Status::notFound(path_ + ": ends at byte " + std::to_string(offset_) + "; " +
                                std::to_string(left) + " more bytes were stored there");
    }

    size_t advance(size_t from, size_t done) {
        while (from < vectors_.size() && done >= vectors_[from].iov_len) {
            done -= vectors_[from].iov_len;
            ++from;
        }
        if (done > 0) {
            vectors_[from].iov_base = static_cast<char*>(vectors_[from].iov_base) + done;
            vectors_[from].iov_len -= done;
        }
        return from;
    }

    void clear() {
        vectors_.clear();
        owners_.clear();
        callBytes_ = 0;
    }

    const MoveOptions options_;
    const size_t maxCall_;
    base::Fd file_;
    std::string path_;
    std::vector<iovec> vectors_;
    std::vector<size_t> owners_;  // the piece of each vector
    std::vector<uint32_t> sums_;
    std::array<char, kAlignment> sink_{};
    uint64_t offset_ = 0;
    size_t callBytes_ = 0;
    Status first_;
};

bool follows(const Piece& piece, const Piece& before) {
    const Item& item = *before.item;
    return piece.path == before.path && piece.item->offset == item.offset + alignUp(item.length);
}

std::vector<std::span<Piece>> jobsOf(std::vector<Piece>& pieces) {
    const auto extent = [](const Piece& piece) {
        return std::tuple(piece.path, piece.item->offset);
    };
    const auto before = [&](const Piece& a, const Piece& b) { return extent(a) < extent(b); };
    if (!std::is_sorted(pieces.begin(), pieces.end(), before)) {
        std::sort(pieces.begin(), pieces.end(), before);
    }
    std::vector<std::span<Piece>> jobs;
    uint64_t bytes = 0;
    size_t start = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
        if (i > start && (bytes >= kJobBytes || !follows(pieces[i], pieces[i - 1]))) {
            jobs.push_back(std::span(pieces).subspan(start, i - start));
            start = i;
            bytes = 0;
        }
        bytes += pieces[i].item->length;
    }
    if (start < pieces.size()) {
        jobs.push_back(std::span(pieces).subspan(start));
    }
    return jobs;
}

}  // namespace

Status movePieces(std::vector<Piece> pieces, const MoveOptions& options) {
    uint64_t bytes = 0;
    for (const Piece& piece : pieces) {
        bytes += piece.item->length;
    }
    const std::vector<std::span<Piece>> jobs = jobsOf(pieces);
    std::atomic<size_t> next{0};
    Mutex mutex;
    Status first;
    const auto work = [&] {
        Worker worker(options);
        for (size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) {
            worker.run(jobs[i]);
        }
        if (!worker.first().ok()) {
            const MutexLock lock(mutex);
            first = first.ok() ? worker.first() : first;
        }
    };
    // Threads that wait for a disk need no core each.
    const uint64_t cores = std::max(1U, std::thread::hardware_concurrency());
    const uint64_t most = options.direct ? kMaxThreads : std::min<uint64_t>(cores, kMaxThreads);
    const uint64_t workers = std::min<uint64_t>({bytes / kBytesPerThread, most, jobs.size()});
    std::vector<std::thread> threads;
    for (uint64_t i = 1; i < workers; ++i) {
        auto thread = base::startThread("nixl-hicache-io", base::Priority::NORMAL, work);
        if (thread.ok()) {  // where none can be had, this one does it all
            threads.push_back(std::move(thread).value());
        }
    }
    work();
    for (std::thread& thread : threads) {
        thread.join();
    }
    return first;
}

}  // namespace nixl::hicache
