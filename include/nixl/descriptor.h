// What the user asks for: descriptors (address, length, device) and lists of them, kept
// compressed where regular. Values: safe to share between threads while nobody changes them.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nixl/error.h"

namespace nixl {

// Kinds of memory and storage. The values are the established ones (DRAM_SEG … FILE_SEG).
enum class MemType : uint8_t { DRAM = 0, VRAM = 1, BLOCK = 2, OBJECT = 3, FILE = 4 };

// "DRAM", "VRAM", "BLOCK", "OBJ", "FILE". Static text.
NIXL_API const char* memTypeName(MemType type) noexcept;
// Reads a name, case-insensitive: also "cpu", "cuda", "BLK", "OBJECT" and "DRAM_SEG"-style.
NIXL_API Result<MemType> parseMemType(std::string_view name);

// One range with everything that registering it may need. `address` is a pointer for memory, an
// offset in bytes for files, blocks and objects; `metadata` a label, "rw:/path" (files) or a key
// (objects).
struct MemDescriptor {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t deviceId = 0;
    MemType type = MemType::DRAM;
    std::string metadata;

    MemDescriptor() = default;
    MemDescriptor(const void* pointer,
                  uint64_t bytes,
                  uint64_t device_id = 0,
                  MemType mem_type = MemType::DRAM,
                  std::string meta = {})
        : address(reinterpret_cast<uint64_t>(pointer)),
          size(bytes),
          deviceId(device_id),
          type(mem_type),
          metadata(std::move(meta)) {}
    template <std::integral T>
    MemDescriptor(T start,
                  uint64_t bytes,
                  uint64_t device_id = 0,
                  MemType mem_type = MemType::DRAM,
                  std::string meta = {})
        : address(static_cast<uint64_t>(start)),
          size(bytes),
          deviceId(device_id),
          type(mem_type),
          metadata(std::move(meta)) {}
    bool operator==(const MemDescriptor&) const = default;
};

// One entry of a descriptor list; its type is the list's.
struct Descriptor {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t deviceId = 0;
    bool operator==(const Descriptor&) const = default;
};

// `count` descriptors of `size` bytes whose addresses grow by `stride` (modulo 2^64).
struct DescriptorRun {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t deviceId = 0;
    uint64_t stride = 0;
    uint64_t count = 1;
};

// The descriptors of one side of a transfer, in order. Either flat (24 bytes each) or runs (40
// bytes each, however many descriptors a run stands for); which one is an inner matter.
class NIXL_API DescriptorList {
  public:
    explicit DescriptorList(MemType type = MemType::DRAM) : type_(type) {}
    // All descriptors must be of one type: MISMATCH (thrown) names the first that is not.
    DescriptorList(const std::vector<MemDescriptor>& descriptors);  // NOLINT(google-explicit-*)
    DescriptorList(std::initializer_list<MemDescriptor> descriptors);

    // `rows` rows of `columns` unsigned 64-bit integers, row-major: 3 columns are address, size,
    // device; 5 are address, size, device, stride, count. Compresses in one pass.
    static Result<DescriptorList> fromRows(MemType type,
                                           const uint64_t* data,
                                           size_t rows,
                                           size_t columns);

    void append(uint64_t address, uint64_t size, uint64_t device_id = 0);
    void appendRun(const DescriptorRun& run);
    void reserve(size_t descriptors);
    void clear();
    // Turns runs of at least four equal steps into DescriptorRuns where that saves space.
    void compress();
    void erase(size_t index);  // REQUIRES: index < size()

    MemType type() const noexcept { return type_; }
    size_t size() const noexcept { return count_; }
    bool empty() const noexcept { return count_ == 0; }
    Descriptor at(size_t index) const;  // REQUIRES: index < size()
    // The index of the first equal descriptor, or -1.
    int64_t find(const Descriptor& wanted) const;

    // Exactly one of the two is non-empty (unless the list is).
    std::span<const Descriptor> flat() const noexcept { return flat_; }
    std::span<const DescriptorRun> runs() const noexcept { return runs_; }
    // Index of the first descriptor of each run; as long as runs().
    std::span<const uint64_t> runStarts() const noexcept { return starts_; }

    // A safe versioned binary form (magic, version, CRC32C); never longer than it must be.
    std::string serialize() const;
    static Result<DescriptorList> deserialize(std::string_view bytes);

    bool operator==(const DescriptorList& other) const;

  private:
    void toRuns();

    MemType type_;
    size_t count_ = 0;
    std::vector<Descriptor> flat_;
    std::vector<DescriptorRun> runs_;
    std::vector<uint64_t> starts_;
};

// What is to be registered: descriptors of one type, each with its metadata.
class NIXL_API RegistrationList {
  public:
    struct Entry {
        uint64_t address = 0;
        uint64_t size = 0;
        uint64_t deviceId = 0;
        std::string metadata;
        bool operator==(const Entry&) const = default;
    };

    explicit RegistrationList(MemType type = MemType::DRAM) : type_(type) {}
    RegistrationList(const std::vector<MemDescriptor>& descriptors);  // NOLINT(google-explicit-*)
    RegistrationList(std::initializer_list<MemDescriptor> descriptors);

    void append(uint64_t address, uint64_t size, uint64_t device_id = 0, std::string meta = {}) {
        entries.push_back({address, size, device_id, std::move(meta)});
    }
    MemType type() const noexcept { return type_; }
    size_t size() const noexcept { return entries.size(); }
    // The same ranges without metadata: what a transfer takes.
    DescriptorList trim() const;

    std::string serialize() const;
    static Result<RegistrationList> deserialize(std::string_view bytes);
    bool operator==(const RegistrationList&) const = default;

    std::vector<Entry> entries;

  private:
    MemType type_;
};

}  // namespace nixl
