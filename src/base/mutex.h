// Annotated mutexes that clang's -Wthread-safety can reason about.
#pragma once

#include <mutex>
#include <shared_mutex>

#if defined(__clang__)
#define NIXL_TSA(x) __attribute__((x))
#else
#define NIXL_TSA(x)
#endif
#define NIXL_GUARDED_BY(m) NIXL_TSA(guarded_by(m))
#define NIXL_REQUIRES(m) NIXL_TSA(requires_capability(m))
#define NIXL_REQUIRES_SHARED(m) NIXL_TSA(requires_shared_capability(m))
#define NIXL_RELEASE(m) NIXL_TSA(release_capability(m))
#define NIXL_EXCLUDES(m) NIXL_TSA(locks_excluded(m))
#define NIXL_NO_TSA NIXL_TSA(no_thread_safety_analysis)

namespace nixl {

class NIXL_TSA(capability("mutex")) Mutex {
  public:
    void lock() NIXL_TSA(acquire_capability()) { mutex_.lock(); }
    void unlock() NIXL_TSA(release_capability()) { mutex_.unlock(); }
    bool tryLock() NIXL_TSA(try_acquire_capability(true)) { return mutex_.try_lock(); }
    std::mutex& native() { return mutex_; }

  private:
    std::mutex mutex_;
};

class NIXL_TSA(scoped_lockable) MutexLock {
  public:
    explicit MutexLock(Mutex& mutex) NIXL_TSA(acquire_capability(mutex)) : mutex_(mutex) {
        mutex_.lock();
    }
    ~MutexLock() NIXL_TSA(release_capability()) { mutex_.unlock(); }
    MutexLock(const MutexLock&) = delete;
    MutexLock& operator=(const MutexLock&) = delete;

  private:
    Mutex& mutex_;
};

class NIXL_TSA(capability("mutex")) SharedMutex {
  public:
    void lock() NIXL_TSA(acquire_capability()) { mutex_.lock(); }
    void unlock() NIXL_TSA(release_capability()) { mutex_.unlock(); }
    void lockShared() NIXL_TSA(acquire_shared_capability()) { mutex_.lock_shared(); }
    void unlockShared() NIXL_TSA(release_shared_capability()) { mutex_.unlock_shared(); }

  private:
    std::shared_mutex mutex_;
};

class NIXL_TSA(scoped_lockable) ReadLock {
  public:
    explicit ReadLock(SharedMutex& mutex) NIXL_TSA(acquire_shared_capability(mutex))
        : mutex_(mutex) {
        mutex_.lockShared();
    }
    ~ReadLock() NIXL_TSA(release_capability()) { mutex_.unlockShared(); }
    ReadLock(const ReadLock&) = delete;
    ReadLock& operator=(const ReadLock&) = delete;

  private:
    SharedMutex& mutex_;
};

class NIXL_TSA(scoped_lockable) WriteLock {
  public:
    explicit WriteLock(SharedMutex& mutex) NIXL_TSA(acquire_capability(mutex)) : mutex_(mutex) {
        mutex_.lock();
    }
    ~WriteLock() NIXL_TSA(release_capability()) { mutex_.unlock(); }
    WriteLock(const WriteLock&) = delete;
    WriteLock& operator=(const WriteLock&) = delete;

  private:
    SharedMutex& mutex_;
};

}  // namespace nixl
