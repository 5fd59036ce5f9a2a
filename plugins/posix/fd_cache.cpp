// The LRU list of open descriptors; see file.h.
#include <cerrno>

#include <unistd.h>

#include "file.h"

namespace nixl::posix {

void FdCache::unlink(Entry& entry) {
    (entry.newer != nullptr ? entry.newer->older : newest_) = entry.older;
    (entry.older != nullptr ? entry.older->newer : oldest_) = entry.newer;
    entry.newer = nullptr;
    entry.older = nullptr;
}

void FdCache::linkNewest(Entry& entry) {
    entry.older = newest_;
    (newest_ != nullptr ? newest_->newer : oldest_) = &entry;
    newest_ = &entry;
}

// Closes the oldest entry that nobody uses. Pinned ones are not in the list.
bool FdCache::evictOne() {
    if (oldest_ == nullptr) {
        return false;
    }
    Entry& victim = *oldest_;
    unlink(victim);
    closeOne(victim.fd);
    victim.fd = -1;
    --open_;
    return true;
}

int FdCache::openOne(const std::function<int()>& open) const {
    const int fd = open();
    const int error = fd >= 0 && opened ? opened(fd) : 0;
    if (error != 0) {
        close(fd);
        return -error;
    }
    return fd;
}

void FdCache::closeOne(int fd) const {
    if (closing) {
        closing(fd);
    }
    close(fd);
}

int FdCache::acquire(Entry& entry, const std::function<int()>& open, Use use) {
    std::unique_lock lock(mutex_);
    while (entry.fd < 0) {
        while (open_ >= capacity_ && evictOne()) {
        }
        lock.unlock();
        const int fd = openOne(open);
        lock.lock();
        if (entry.fd >= 0) {  // another thread was faster
            if (fd >= 0) {
                closeOne(fd);
            }
            break;
        }
        if (fd >= 0) {
            entry.fd = fd;
            ++open_;
            linkNewest(entry);
        } else if ((fd != -EMFILE && fd != -ENFILE) || !evictOne()) {
            return fd;
        }
    }
    if (entry.pins++ == 0) {
        unlink(entry);
    }
    pinned_ += use == Use::REQUEST ? 1 : 0;
    return entry.fd;
}

void FdCache::release(Entry& entry, Use use) {
    int unused = -1;
    {
        const std::lock_guard lock(mutex_);
        if (--entry.pins == 0) {
            if (entry.keep) {
                linkNewest(entry);
            } else {
                unused = std::exchange(entry.fd, -1);
                --open_;
            }
            while (open_ > capacity_ && evictOne()) {
            }
        }
        pinned_ -= use == Use::REQUEST ? 1 : 0;
    }
    if (unused >= 0) {
        closeOne(unused);
    }
}

void FdCache::forget(Entry& entry) {
    if (getpid() != process_) {
        return;  // the lock may have been held at the fork
    }
    const std::lock_guard lock(mutex_);
    if (entry.fd >= 0) {
        unlink(entry);
        closeOne(entry.fd);
        entry.fd = -1;
        --open_;
    }
}

size_t FdCache::openCount() const {
    const std::lock_guard lock(mutex_);
    return open_;
}

}  // namespace nixl::posix
