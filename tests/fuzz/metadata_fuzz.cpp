// Fuzzes what travels as metadata and descriptors: blobs and serialized lists. What is accepted
// must survive being written and read again.
#include <cstdint>
#include <string_view>

#include "nixl/descriptor.h"

#include "base/bytes.h"
#include "base/crc32c.h"
#include "metadata/blob.h"

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 3) {
        case 0: {
            // The checksum is put right, so that the inside is reached.
            nixl::base::ByteWriter out;
            out.raw("NIXLMD");
            out.fixed<uint16_t>(nixl::metadata::kBlobVersion);
            out.raw(bytes);
            out.fixed(nixl::base::crc32c(out.bytes()));
            auto blob = nixl::metadata::decodeBlob(out.bytes());
            if (blob.ok() &&
                !nixl::metadata::decodeBlob(nixl::metadata::encodeBlob(blob.value())).ok()) {
                __builtin_trap();
            }
            static_cast<void>(nixl::metadata::decodeBlob(bytes).ok());
            break;
        }
        case 1: {
            auto list = nixl::DescriptorList::deserialize(bytes);
            if (list.ok() && !nixl::DescriptorList::deserialize(list.value().serialize()).ok()) {
                __builtin_trap();
            }
            break;
        }
        default: {
            auto list = nixl::RegistrationList::deserialize(bytes);
            if (list.ok() && !nixl::RegistrationList::deserialize(list.value().serialize()).ok()) {
                __builtin_trap();
            }
            break;
        }
    }
    return 0;
}
