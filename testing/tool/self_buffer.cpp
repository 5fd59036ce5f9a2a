// See self_buffer.h.
#include "testing/tool/self_buffer.h"

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

class SelfBuffer final : public Buffer {
  public:
    SelfBuffer(std::shared_ptr<Side> side, MemType type, uint64_t size)
        : Buffer(size), side_(std::move(side)), type_(type), name_(nextName()) {
        clear();  // whatever the store needs, there are `size` bytes now
    }
    ~SelfBuffer() override {
        if (QuerySupport* const query = side_->backend().query(); query != nullptr) {
            static_cast<void>(query->remove(name_));
        }
    }
    MemoryRegion region() const override { return {type_, 0, size(), 0, name_}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        auto memory = makeHostBuffer(bytes.size());
        memory->write(0, bytes);
        move(OpType::WRITE, offset, std::move(memory));
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        const auto memory = move(OpType::READ, offset, makeHostBuffer(bytes.size()));
        memory->buffer().read(0, bytes);
    }
    // By what any store can do: the beginning is written anew where there was nothing.
    bool truncate(uint64_t size) override {
        QuerySupport* const query = side_->backend().query();
        if (query == nullptr || size > this->size()) {
            return false;
        }
        const std::vector<uint8_t> rest =
            size < this->size() ? bytes(0, size) : std::vector<uint8_t>();
        if (!query->remove(name_).ok()) {
            return false;
        }
        if (rest.empty()) {
            clear();
        } else {
            write(0, rest);
        }
        return true;
    }

  private:
    uint64_t step() const override { return size(); }  // a store may take nothing but the whole
    std::unique_ptr<Registered> move(OpType op,
                                     uint64_t offset,
                                     std::unique_ptr<Buffer> memory) const {
        auto local = std::make_unique<Registered>(*side_, std::move(memory));
        const MemoryRegion here = region();
        auto there = side_->backend().registerMemory(here);
        if (!local->ok() || !there.ok()) {
            giveUp("cannot register: " + local->status().message() + there.status().message());
        }
        const PlanRegion remote{here.type,           0, here.size, 0, here.metadata,
                                there.value().get(), 1, 1};
        Job job(op, local->region(), remote, side_->peer(true));
        if (!job.add({0, offset, local->buffer().size()}).run(side_->backend())) {
            giveUp(name_ + ": the plugin itself failed to " + opName(op));
        }
        return local;
    }

    const std::shared_ptr<Side> side_;
    const MemType type_;
    const std::string name_;
};

class FolderBuffer final : public Buffer {
  public:
    FolderBuffer(const std::string& folder, MemType type, uint64_t size)
        : Buffer(size), type_(type), name_(nextName()), path_(folder + "/" + name_) {
        file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file_ < 0 || ftruncate(file_, static_cast<off_t>(size)) != 0) {
            giveUp(path_ + ": " + std::strerror(errno));
        }
    }
    ~FolderBuffer() override {
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

BufferMaker selfBuffers(const Subject& subject, MemType type) {
    // One for all buffers, made when the first is, kept until the process ends.
    const auto shared = std::make_shared<std::shared_ptr<Side>>();
    return [subject, type, shared](uint64_t size) -> std::unique_ptr<Buffer> {
        if (!*shared) {
            *shared = std::make_shared<Side>(subject, "conformance-self");
            if (!**shared) {
                giveUp("the backend for the buffers cannot be created");
            }
        }
        return std::make_unique<SelfBuffer>(*shared, type, size);
    };
}

BufferMaker folderBuffers(const std::string& folder, MemType type) {
    return [folder, type](uint64_t size) -> std::unique_ptr<Buffer> {
        return std::make_unique<FolderBuffer>(folder, type, size);
    };
}

}  // namespace nixl::testkit
