// How one process tells another of GPU memory: a small sealed memory file that goes along with
// MAP_REPLY, the card, and after it the file of the memory itself where the driver shares it so.
// docs/protocol.md describes the bytes. Functions; any thread.
#pragma once

#include <vector>

#include "nixl/device.h"

#include "base/socket.h"

namespace nixl::peer {

// Appends the card, and the file that `made` holds, to `files`; the index of the card.
Result<size_t> addDeviceCard(const DeviceExport& made, std::vector<base::Fd>& files);
// Reads the card at `index`; what it gives owns a descriptor of its own.
Result<DeviceExport> readDeviceCard(const std::vector<base::Fd>& files, size_t index);
void closeDeviceCard(const DeviceExport& card);

}  // namespace nixl::peer
