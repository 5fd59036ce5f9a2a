// Memory of the caller as an iov, so that 3FS reads and writes it without a copy. 3FS maps shared
// memory by its name below /dev/shm, so only memory that is a mapping of such a file can be one.
//
// Threads: thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "nixl/error.h"

#include "usrbio.h"

namespace nixl::hf3fs {

// One published file; its end takes it back.
class PublishedIov {
  public:
    PublishedIov() = default;
    ~PublishedIov();
    PublishedIov(const PublishedIov&) = delete;
    PublishedIov& operator=(const PublishedIov&) = delete;

    Iov iov;
    std::string link;
};

class SharedMemory {
  public:
    SharedMemory(const Library& library, std::string mount)
        : library_(library), mount_(std::move(mount)) {}

    // The iov around [address, address + size), which registrations in one mapping share; an error
    // says why that memory cannot be one.
    Result<std::shared_ptr<PublishedIov>> find(uint64_t address, uint64_t size);

  private:
    Result<std::shared_ptr<PublishedIov>> publish(const std::string& path,
                                                  uint64_t base,
                                                  uint64_t bytes);

    const Library& library_;
    const std::string mount_;
    std::mutex mutex_;  // guards what follows
    std::map<std::pair<std::string, uint64_t>, std::weak_ptr<PublishedIov>> known_;
};

}  // namespace nixl::hf3fs
