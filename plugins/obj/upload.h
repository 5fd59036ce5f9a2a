// An object that is written in parts, and what gives bodies their bytes.
//
// Threads: an Upload is shared by the tasks of its parts; a source belongs to one task.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "staging.h"
#include "work.h"

namespace nixl::obj {

// The bytes of pieces from `first` on, straight from the user's memory, or from the buffers of a
// GPU's.
class PieceSource final : public BodySource {
  public:
    PieceSource(Work& work, std::span<const Piece> pieces, uint64_t first, uint64_t size)
        : work_(work),
          reader_(work.store().services.devices(), pieces, first, size),
          first_(first),
          end_(first + size),
          reported_(first) {}

    size_t read(char* to, size_t size) override;
    void rewind(uint64_t offset) override {
        reader_.seek(first_ + offset);
        report(first_ + offset);
    }
    // CRC32C as S3 writes it, or the 32 bytes of a SHA-256; begins anew. Of no use after a failure.
    std::string digest(Checksum kind);
    // Why bytes of a GPU did not come.
    const Status& status() const { return reader_.status(); }
    // Nothing touches user memory any more.
    void stop() { reader_.stop(); }

  private:
    void report(uint64_t offset);

    Work& work_;
    PieceReader reader_;
    const uint64_t first_;
    const uint64_t end_;
    uint64_t reported_;
};

// A text of one's own.
class TextSource final : public BodySource {
  public:
    explicit TextSource(std::string text) : text_(std::move(text)) {}
    size_t read(char* to, size_t size) override {
        const size_t step = std::min(size, text_.size() - at_);
        std::memcpy(to, text_.data() + at_, step);
        at_ += step;
        return step;
    }
    void rewind(uint64_t offset) override { at_ = std::min<size_t>(offset, text_.size()); }
    size_t size() const { return text_.size(); }
    const std::string& text() const { return text_; }

  private:
    const std::string text_;
    size_t at_ = 0;
};

// The checksum of a body, put into its request as the settings say; empty: none.
std::string addDigest(S3Request& request, PieceSource& source, const Store& store);

struct UploadedPart {
    std::string etag;  // as the store gave it, quotes included
    std::string checksum;
};

class Upload : public std::enable_shared_from_this<Upload> {
  public:
    Upload(std::shared_ptr<Work> of, const PlannedObject& planned)
        : work(std::move(of)), object(planned) {}

    std::string what() const;
    std::string partList() const;
    void partEnded(Status status);
    void end(Status status);  // of the whole; once

    const std::shared_ptr<Work> work;
    const PlannedObject& object;
    uint64_t partSize = 0;
    std::string id;  // once created
    bool checksums = false;
    std::vector<UploadedPart> parts;  // each written by its task
    std::atomic<bool> broken{false};  // no more parts

    mutable std::mutex mutex;  // guards what follows
    size_t nextPart = 0;
    size_t running = 0;
    size_t there = 0;
    Status first;
};

}  // namespace nixl::obj
