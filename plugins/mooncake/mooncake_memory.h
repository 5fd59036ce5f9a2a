// What the lane keeps of a registration, and the text that tells peers of it. Threads: any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nixl/backend.h"

#include "cover.h"

namespace nixl::mooncake {

// Of this agent's own: registered with the engine as long as it lives.
class MooncakeMemory final : public BackendMemory {
  public:
    MooncakeMemory(std::shared_ptr<Cover> cover, Cover::Range range, std::vector<uint64_t> cuts)
        : cover_(std::move(cover)), range_(range), cuts_(std::move(cuts)) {}
    ~MooncakeMemory() override {
        if (range_.first != range_.second) {
            cover_->remove(range_);
        }
    }
    const std::vector<uint64_t>& cuts() const { return cuts_; }
    // For exportMemory: version, number of cuts, cuts; little endian, never empty.
    std::string key() const;

  private:
    const std::shared_ptr<Cover> cover_;
    const Cover::Range range_;
    const std::vector<uint64_t> cuts_;
};

// Of a peer's.
class MooncakeRemoteMemory final : public BackendMemory {
  public:
    explicit MooncakeRemoteMemory(std::vector<uint64_t> cuts) : cuts_(std::move(cuts)) {}
    // INVALID_PARAM where it is none.
    static Result<std::unique_ptr<BackendMemory>> parse(const MemoryRegion& region,
                                                        std::string_view key);
    const std::vector<uint64_t>& cuts() const { return cuts_; }

  private:
    const std::vector<uint64_t> cuts_;
};

// Null where the lane has nothing of it.
const std::vector<uint64_t>* cutsOf(const BackendMemory* memory);

// For connectionInfo: what peers need to reach an engine.
struct EngineAddress {
    std::string protocol;
    std::string segment;
    std::string text() const;
    static Result<EngineAddress> parse(std::string_view text);
};

}  // namespace nixl::mooncake
