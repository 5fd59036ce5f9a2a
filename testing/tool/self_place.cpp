// See self_place.h.
#include "testing/tool/self_place.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include "testing/harness.h"

namespace nixl::testkit {
namespace {

std::string nextName() {
    static std::atomic<int> number{0};
    return "conformance-" + std::to_string(++number);
}

[[noreturn]] void giveUp(const std::string& what) {
    std::fprintf(stderr, "conformance: %s\n", what.c_str());
    std::abort();
}

class SelfPlace final : public Place {
  public:
    SelfPlace(std::shared_ptr<Side> side, MemType type, uint64_t size)
        : Place(size), side_(std::move(side)), type_(type), name_(nextName()) {
        clear();  // whatever the store needs, there are `size` bytes now
    }
    ~SelfPlace() override {
        if (QuerySupport* const query = side_->backend().query(); query != nullptr) {
            static_cast<void>(query->remove(name_));
        }
    }
    MemoryRegion region() const override { return {type_, 0, size(), 0, name_}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        auto memory = makeHostPlace(bytes.size());
        memory->write(0, bytes);
        move(OpType::WRITE, offset, std::move(memory));
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        const auto memory = move(OpType::READ, offset, makeHostPlace(bytes.size()));
        memory->place().read(0, bytes);
    }

  private:
    std::unique_ptr<Registered> move(OpType op,
                                     uint64_t offset,
                                     std::unique_ptr<Place> memory) const {
        auto local = std::make_unique<Registered>(*side_, std::move(memory));
        const MemoryRegion here = region();
        auto there = side_->backend().registerMemory(here);
        if (!local->ok() || !there.ok()) {
            giveUp("cannot register: " + local->status().message() + there.status().message());
        }
        const PlanRegion remote{here.type,           0, here.size, 0, here.metadata,
                                there.value().get(), 1, 1};
        Job job(op, local->region(), remote, side_->peer(true));
        if (!job.add({0, offset, local->place().size()}).run(side_->backend())) {
            giveUp(name_ + ": the plugin itself failed to " + opName(op));
        }
        return local;
    }

    const std::shared_ptr<Side> side_;
    const MemType type_;
    const std::string name_;
};

class FolderPlace final : public Place {
  public:
    FolderPlace(const std::string& folder, MemType type, uint64_t size)
        : Place(size), type_(type), name_(nextName()), path_(folder + "/" + name_) {
        file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file_ < 0 || ftruncate(file_, static_cast<off_t>(size)) != 0) {
            giveUp(path_ + ": " + std::strerror(errno));
        }
    }
    ~FolderPlace() override {
        close(file_);
        unlink(path_.c_str());
    }
    MemoryRegion region() const override { return {type_, 0, size(), 0, name_}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        if (pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(bytes.size())) {
            giveUp(path_ + ": cannot be written");
        }
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        if (pread(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(bytes.size())) {
            giveUp(path_ + ": cannot be read");
        }
    }
    bool truncate(uint64_t size) override {
        return ftruncate(file_, static_cast<off_t>(size)) == 0;
    }

  private:
    const MemType type_;
    const std::string name_;
    const std::string path_;
    int file_ = -1;
};

}  // namespace

PlaceMaker selfPlaces(const Subject& subject, MemType type) {
    // One for all places, made when the first is, kept until the process ends.
    const auto shared = std::make_shared<std::shared_ptr<Side>>();
    return [subject, type, shared](uint64_t size) -> std::unique_ptr<Place> {
        if (!*shared) {
            *shared = std::make_shared<Side>(subject, "conformance-self");
            if (!**shared) {
                giveUp("the backend for the places cannot be created");
            }
        }
        return std::make_unique<SelfPlace>(*shared, type, size);
    };
}

PlaceMaker folderPlaces(const std::string& folder, MemType type) {
    return [folder, type](uint64_t size) -> std::unique_ptr<Place> {
        return std::make_unique<FolderPlace>(folder, type, size);
    };
}

}  // namespace nixl::testkit
