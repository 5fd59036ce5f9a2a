// The conformance suite over GPUNETIO: GPU memory of the stand-ins, requests through the rings of
// their adapter.
#include <cstring>

#include "gpunetio_test_support.h"
#include "testing/conformance.h"

namespace nixl::gpunetio {
namespace {

using testkit::Buffer;
using testkit::StandinGpus;
using testkit::Subject;

Standins& standins() {
    static auto& made = *new Standins;  // DOCA stays open
    return made;
}

class GpuBuffer final : public Buffer {
  public:
    explicit GpuBuffer(uint64_t size)
        : Buffer(size), address_(standins().gpus.allocate(std::max<uint64_t>(size, 1))) {}
    ~GpuBuffer() override { standins().gpus.free(address_); }

    MemoryRegion region() const override { return {MemType::VRAM, address_, size(), 0, ""}; }
    void write(uint64_t offset, std::span<const uint8_t> bytes) override {
        std::memcpy(StandinGpus::at(address_ + offset), bytes.data(), bytes.size());
    }
    void read(uint64_t offset, std::span<uint8_t> bytes) const override {
        std::memcpy(bytes.data(), StandinGpus::at(address_ + offset), bytes.size());
    }

  private:
    const uint64_t address_;
};

Subject gpunetio() {
    Subject subject("Gpunetio", "GPUNETIO", Subject::NETWORK);
    subject.table = nixlPluginTable();
    subject.parameters = {{"data_qp_count", "2"}};
    subject.local = [](uint64_t size) { return std::make_unique<GpuBuffer>(size); };
    subject.remote = subject.local;
    subject.reposts = 200;
    subject.unavailable = [] {
        standins();
        return std::string();
    };
    return subject;
}

const bool kJoined = testkit::joinConformance(gpunetio());

}  // namespace
}  // namespace nixl::gpunetio
