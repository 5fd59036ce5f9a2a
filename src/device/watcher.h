// One thread of the process that sees batches end nobody polls. It starts with the first and
// sleeps while there is none.
#pragma once

#include <memory>

#include "nixl/device.h"

namespace nixl::device {

// Polls the batch until its end. Where no thread can be had it waits here.
void watch(std::shared_ptr<DeviceBatch> batch);

}  // namespace nixl::device
