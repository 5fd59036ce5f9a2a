// A framework's own store as a MetadataStore. Thread-safe, as that.
#pragma once

#include <memory>

#include "nixl/metadata_store.h"

#include "exchange/store.h"

namespace nixl::exchange {

// It cannot list, and cannot watch; what is put stays until it is removed.
std::unique_ptr<MetadataStore> makeFrameworkStore(std::shared_ptr<FrameworkStore> store);

}  // namespace nixl::exchange
