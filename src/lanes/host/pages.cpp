// See pages.h.
#include "lanes/host/pages.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/system_error.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace nixl::peer {

namespace {

Status unsupported(const std::string& what, int error) {
    return base::systemError(what, error, ErrorCode::NOT_SUPPORTED);
}

// Zeroed shared memory of a fixed size, mapped here for writing.
Result<Mapping> makeShared(const char* name,
                           size_t size,
                           bool read_only_for_others,
                           base::Fd& file) {
    base::Fd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ftruncate(fd.get(), static_cast<off_t>(size)) < 0) {
        return unsupported("cannot make shared memory", errno);
    }
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) {
        return unsupported("cannot map shared memory", errno);
    }
    Mapping mapping(at, size);
    const int seals =
        F_SEAL_SHRINK | F_SEAL_GROW | (read_only_for_others ? F_SEAL_FUTURE_WRITE : 0);
    if (fcntl(fd.get(), F_ADD_SEALS, seals | F_SEAL_SEAL) < 0) {
        return unsupported("cannot seal shared memory", errno);
    }
    file = std::move(fd);
    return mapping;
}

// Another process' memory file, mapped here, if it is sealed and of that size.
Result<Mapping> mapForeign(const base::Fd& fd, size_t size, int protection) {
    struct stat info {};
    const int seals = fcntl(fd.get(), F_GET_SEALS);
    // Without the seal its owner could shrink it, and reading it would kill us.
    if (fstat(fd.get(), &info) < 0 || seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
        static_cast<uint64_t>(info.st_size) < size) {
        return Status::notSupported("the peer's page is not sealed memory of the right size");
    }
    void* const at = mmap(nullptr, size, protection, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) {
        return unsupported("cannot map the peer's page", errno);
    }
    madvise(at, size, MADV_DONTFORK);
    return Mapping(at, size);
}

// A descriptor of another process, duplicated here.
Result<base::Fd> takeForeign(const base::Fd& pidfd, uint32_t number) {
    base::Fd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    if (!fd) {
        return unsupported("pidfd_getfd", errno);
    }
    return fd;
}

// A copy may be done this long after the last look at the peer's process.
constexpr int64_t kLookAgainNs = 50'000;

int64_t nowNs() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

}  // namespace

Mapping::~Mapping() {
    if (address_ != nullptr && !process_.forked()) {
        munmap(address_, size_);
    }
}

base::Fd duplicateFd(const base::Fd& fd) {
    return fd ? base::Fd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)) : base::Fd();
}

bool processEnded(const base::Fd& pidfd) {
    if (!pidfd) {
        return false;
    }
    pollfd entry{pidfd.get(), POLLIN, 0};
    return poll(&entry, 1, 0) > 0;
}

bool PageAccess::enter() {
    if (epoch_ == 0) {
        if (mark().load(std::memory_order_relaxed) == 0) {
            epoch_ = generations_.epoch.load();
        } else {
            ++at_;
        }
        return false;
    }
    uint64_t expected = 0;
    // Read-modify-write: it is ordered before the look at the generations that follows.
    if (mark().compare_exchange_strong(expected, std::exchange(epoch_, 0))) {
        return true;
    }
    ++at_;
    return false;
}

bool Revocation::step() {
    if (!std::exchange(refused_, true)) {
        page_.lowestValid[region_].exchange(generation_ + 1);
        return false;
    }
    page_.epoch.fetch_add(1);
    return true;
}

bool QuietWait::step() {
    if (peer_ < peers_.size()) {
        const PeerMarks& peer = *peers_[peer_];
        const uint64_t begun = peer.page.as<MarkPage>()->marks[mark_].epoch.load();
        if (begun != 0 && begun < epoch_ && !processEnded(peer.pidfd)) {
            ++looks_;
            return false;
        }
        looks_ = 0;
        mark_ = (mark_ + 1) % MarkPage::kMarks;
        peer_ += mark_ == 0 ? 1 : 0;
    }
    return peer_ == peers_.size();
}

const std::string& QuietWait::peer() const {
    return peers_[peer_]->peer;
}

std::string HostOffer::encode() const {
    base::ByteWriter out;
    out.fixed(generationsFd);
    out.fixed(marksFd);
    return out.take();
}

Result<HostOffer> HostOffer::decode(std::string_view body) {
    base::ByteReader in(body);
    HostOffer offer;
    offer.generationsFd = in.fixed<uint32_t>();
    offer.marksFd = in.fixed<uint32_t>();
    if (!in.ok() || !in.atEnd() || offer.generationsFd > INT32_MAX || offer.marksFd > INT32_MAX) {
        return Status::invalidParam("malformed HOST_OFFER frame");
    }
    return offer;
}

Status HostTarget::ensurePage() {
    if (page_) {
        return {};
    }
    auto page = makeShared("nixl-generations", sizeof(GenerationPage), true, file_);
    if (!page.ok()) {
        return page.status();
    }
    page_ = std::move(page).value();
    auto* shared = page_.as<GenerationPage>();
    shared->epoch.store(1);
    for (const auto& [region, lowest] : early_) {
        shared->lowestValid[region].store(lowest);
    }
    early_.clear();
    return {};
}

Result<std::shared_ptr<PeerMarks>> HostTarget::open(const std::string& peer, base::Fd pidfd) {
    auto marks = std::make_shared<PeerMarks>();
    marks->peer = peer;
    marks->pidfd = std::move(pidfd);
    auto page = makeShared("nixl-marks", sizeof(MarkPage), false, marks->file);
    if (!page.ok()) {
        return page.status();
    }
    marks->page = std::move(page).value();
    const MutexLock lock(mutex_);
    NIXL_RETURN_IF_ERROR(ensurePage());
    peers_.push_back(marks);
    return marks;
}

HostOffer HostTarget::offer(const PeerMarks& marks) const {
    const MutexLock lock(mutex_);
    return {static_cast<uint32_t>(file_.get()), static_cast<uint32_t>(marks.file.get())};
}

std::vector<base::Fd> HostTarget::pages(const PeerMarks& marks) const {
    std::vector<base::Fd> both;
    const MutexLock lock(mutex_);
    for (const base::Fd* const one : {&file_, &marks.file}) {
        both.push_back(duplicateFd(*one));
        if (!both.back()) {
            return {};
        }
    }
    return both;
}

void HostTarget::close(const std::shared_ptr<PeerMarks>& marks) {
    const MutexLock lock(mutex_);
    // Where the process may go on, so may an access of it: the marks are kept until it has left
    // them or has ended.
    std::erase_if(peers_, [&](const std::shared_ptr<PeerMarks>& one) {
        if (one != marks && one.use_count() > 1) {
            return false;
        }
        const auto* page = one->page.as<MarkPage>();
        return processEnded(one->pidfd) ||
               std::all_of(std::begin(page->marks), std::end(page->marks),
                           [](const MarkPage::Mark& mark) { return mark.epoch.load() == 0; });
    });
}

void HostTarget::revoke(uint64_t region, uint32_t generation) {
    if (region >= GenerationPage::kRegions) {
        return;
    }
    const MutexLock lock(mutex_);
    if (!page_) {
        early_[region] = generation + 1;
        return;
    }
    Revocation revocation(*page_.as<GenerationPage>(), region, generation);
    while (!revocation.step()) {
    }
}

bool HostTarget::revoked(uint64_t region, uint32_t generation) const {
    const MutexLock lock(mutex_);
    return region < GenerationPage::kRegions && page_ &&
           page_.as<GenerationPage>()->lowestValid[region].load() > generation;
}

void HostTarget::restore(uint64_t region, uint32_t generation) {
    if (region >= GenerationPage::kRegions) {
        return;
    }
    const MutexLock lock(mutex_);
    if (page_) {
        page_.as<GenerationPage>()->lowestValid[region].exchange(generation);
    } else {
        early_.erase(region);
    }
}

Status HostTarget::awaitQuiet(base::Deadline deadline) {
    std::optional<QuietWait> wait;
    {
        const MutexLock lock(mutex_);
        if (!page_) {
            return {};
        }
        wait.emplace(*page_.as<GenerationPage>(), peers_);
    }
    while (!wait->step()) {
        if (wait->looks() == 0) {
            continue;
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            return Status::timeout("agent \"" + wait->peer() +
                                   "\" is still inside an access to this agent's memory");
        }
        if (wait->looks() < 100) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }
    return {};
}

Status HostPeer::attach() {
    if (process_.pid <= 0) {
        return Status::notSupported("the peer is in another PID namespace");
    }
    if (!process_.pidfd) {
        return Status::notSupported("the system has no pidfd of process " +
                                    std::to_string(process_.pid));
    }
    Key found{};
    const iovec local{found.data(), found.size()};
    const iovec remote{reinterpret_cast<void*>(process_.cookieAt), found.size()};
    if (process_vm_readv(process_.pid, &local, 1, &remote, 1, 0) !=
        static_cast<ssize_t>(found.size())) {
        return unsupported("attaching to process " + std::to_string(process_.pid) + " is refused",
                           errno);
    }
    if (found != process_.cookie) {
        return Status::notSupported("process " + std::to_string(process_.pid) + " is not the peer");
    }
    return {};
}

Result<std::shared_ptr<HostPeer>> HostPeer::create(HostProcess process,
                                                   const HostOffer& offer,
                                                   const std::vector<base::Fd>& passed) {
    std::shared_ptr<HostPeer> peer(new HostPeer);
    peer->process_ = std::move(process);
    peer->canPassDescriptors_ = passed.size() == 2;
    const Status attached = peer->attach();
    peer->attachError_ = attached.message();
    std::vector<base::Fd> taken;
    if (!peer->canPassDescriptors_) {
        NIXL_RETURN_IF_ERROR(attached);
        for (const uint32_t number : {offer.generationsFd, offer.marksFd}) {
            auto fd = takeForeign(peer->process_.pidfd, number);
            if (!fd.ok()) {
                return fd.status();
            }
            taken.push_back(std::move(fd).value());
        }
    }
    const std::vector<base::Fd>& pages = peer->canPassDescriptors_ ? passed : taken;
    auto generations = mapForeign(pages[0], sizeof(GenerationPage), PROT_READ);
    if (!generations.ok()) {
        return generations.status();
    }
    auto marks = mapForeign(pages[1], sizeof(MarkPage), PROT_READ | PROT_WRITE);
    if (!marks.ok()) {
        return marks.status();
    }
    peer->generations_ = std::move(generations).value();
    peer->marks_ = std::move(marks).value();
    return peer;
}

bool HostPeer::dead() {
    if (ended_.load(std::memory_order_acquire)) {
        return true;
    }
    // One look costs as much as a small copy.
    const int64_t now = nowNs();
    if (now - seenAlive_.load(std::memory_order_relaxed) < kLookAgainNs) {
        return false;
    }
    if (processEnded(process_.pidfd)) {
        end();
        return true;
    }
    seenAlive_.store(now, std::memory_order_relaxed);
    return false;
}

bool HostPeer::valid(uint64_t region, uint32_t generation) const {
    return region < GenerationPage::kRegions &&
           generations_.as<const GenerationPage>()->lowestValid[region].load() <= generation;
}

Status HostPeer::checkRegions(const PageAccess& access,
                              std::span<const std::pair<uint64_t, uint32_t>> regions) {
    for (const auto& [id, generation] : regions) {
        if (!access.allowed(id, generation)) {
            return Status::notFound("region " + std::to_string(id) +
                                    " has been deregistered by its agent");
        }
    }
    return {};
}

Status HostPeer::gone(bool ended) const {
    const std::string who =
        process_.pid > 0 ? "process " + std::to_string(process_.pid) : "the peer's process";
    return {ErrorCode::REMOTE_DISCONNECT,
            who + (ended ? " has ended" : " has closed its connection"), ended ? ESRCH : ENOTCONN};
}

Status HostPeer::copyAttached(OpType op, const Batch& batch, uint64_t& moved) const {
    const auto call = op == OpType::READ ? process_vm_readv : process_vm_writev;
    const ssize_t done =
        call(process_.pid, batch.local, batch.localCount, batch.remote, batch.remoteCount, 0);
    const int error = errno;
    if (done < 0) {
        return error == ESRCH ? gone(true) : base::systemError("copying between processes", error);
    }
    moved = static_cast<uint64_t>(done);
    return moved < batch.bytes ? Status::backend("part of the memory is not mapped", EFAULT)
                               : Status();
}

Result<std::shared_ptr<void>> HostPeer::hold(
    std::shared_ptr<HostPeer> peer, std::span<const std::pair<uint64_t, uint32_t>> regions) {
    struct Holder {
        std::shared_ptr<HostPeer> peer;
        PageAccess access;
        Holder(std::shared_ptr<HostPeer> its_peer, const PageAccess& entered)
            : peer(std::move(its_peer)), access(entered) {}
        ~Holder() { access.leave(); }
        Holder(const Holder&) = delete;
        Holder& operator=(const Holder&) = delete;
    };
    PageAccess access(*peer->marks_.as<MarkPage>(), *peer->generations_.as<const GenerationPage>(),
                      0);
    for (unsigned step = 1; !access.enter(); ++step) {
        if (step % MarkPage::kMarks == 0) {
            std::this_thread::yield();
        }
    }
    Status status = checkRegions(access, regions);
    if (status.ok() && peer->dead()) {
        status = peer->gone(processEnded(peer->process_.pidfd));
    }
    if (!status.ok()) {
        access.leave();
        return status;
    }
    return std::shared_ptr<void>(std::make_shared<Holder>(std::move(peer), access));
}

Status HostPeer::transfer(OpType op, const Batch& batch, uint64_t& moved) {
    moved = 0;
    static std::atomic<unsigned> next_start{0};
    thread_local const unsigned start = next_start.fetch_add(1);
    PageAccess access(*marks_.as<MarkPage>(), *generations_.as<const GenerationPage>(), start);
    for (unsigned step = 1; !access.enter(); ++step) {
        if (step % MarkPage::kMarks == 0) {
            std::this_thread::yield();
        }
    }
    Status status = checkRegions(access, batch.regions);
    if (status.ok() && dead()) {
        status = gone(processEnded(process_.pidfd));
    }
    if (status.ok() && batch.mapped) {
        for (size_t i = 0; i < batch.localCount; ++i) {
            void* const local = batch.local[i].iov_base;
            void* const remote = batch.remote[i].iov_base;
            const bool read = op == OpType::READ;
            // Streaming stores around the caches were no faster here at any size (64 MiB on a
            // machine with 360 MiB of last-level cache), so this is the library's copy.
            std::memcpy(read ? local : remote, read ? remote : local, batch.local[i].iov_len);
        }
        moved = batch.bytes;
    } else if (status.ok()) {
        status = copyAttached(op, batch, moved);
    }
    access.leave();
    return status;
}

}  // namespace nixl::peer
