// See device_card.h.
#include "lanes/host/device_card.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/system_error.h"

namespace nixl::peer {

namespace {

constexpr uint64_t kCardMagic = 0x3147'5055'4c58'494e;  // "NIXLUPG1", little endian
constexpr size_t kCardBytes = 8 + 1 + 16 + 64 + 8 + 8;

}  // namespace

Result<size_t> addDeviceCard(const DeviceExport& made, std::vector<base::Fd>& files) {
    base::Fd file(made.fd);
    base::Fd card(memfd_create("nixl-gpu", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    base::ByteWriter out;
    out.fixed(kCardMagic);
    out.fixed(static_cast<uint8_t>(file ? 1 : 0));
    for (const uint8_t byte : made.gpu) {
        out.fixed(byte);
    }
    for (const uint8_t byte : made.handle) {
        out.fixed(byte);
    }
    out.fixed(made.base);
    out.fixed(made.size);
    const std::string_view bytes = out.bytes();
    if (!card ||
        pwrite(card.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
        return base::systemError("a memory file for a GPU's handle", errno);
    }
    const size_t index = files.size();
    files.push_back(std::move(card));
    if (file) {
        files.push_back(std::move(file));
    }
    return index;
}

Result<DeviceExport> readDeviceCard(const std::vector<base::Fd>& files, size_t index) {
    char bytes[kCardBytes];
    if (pread(files[index].get(), bytes, sizeof bytes, 0) != sizeof bytes) {
        return Status::notSupported("the peer gave no handle of its GPU memory");
    }
    base::ByteReader in(std::string_view(bytes, sizeof bytes));
    const auto magic = in.fixed<uint64_t>();
    const auto with_file = in.fixed<uint8_t>();
    DeviceExport card;
    for (uint8_t& byte : card.gpu) {
        byte = in.fixed<uint8_t>();
    }
    for (uint8_t& byte : card.handle) {
        byte = in.fixed<uint8_t>();
    }
    card.base = in.fixed<uint64_t>();
    card.size = in.fixed<uint64_t>();
    if (!in.ok() || magic != kCardMagic || card.size > UINT64_MAX - card.base ||
        (with_file != 0 && index + 1 >= files.size())) {
        return Status::notSupported("the peer gave a malformed handle of its GPU memory");
    }
    if (with_file != 0) {
        card.fd = fcntl(files[index + 1].get(), F_DUPFD_CLOEXEC, 0);
        if (card.fd < 0) {
            return base::systemError("the file of the peer's GPU memory", errno);
        }
    }
    return card;
}

void closeDeviceCard(const DeviceExport& card) {
    if (card.fd >= 0) {
        close(card.fd);
    }
}

}  // namespace nixl::peer
