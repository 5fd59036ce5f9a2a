// etcd as a store of metadata, over its v3 JSON gateway with libcurl.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "exchange/store.h"

namespace nixl::exchange_etcd {

// The store that `settings` (see settings.h) name; agents of one process with the same settings
// share it, with its thread, its lease and its connections. Made without asking the server: a
// server that is down is tried again. INVALID_PARAM for bad settings, NOT_SUPPORTED without
// libcurl. When the last owner lets go, what this process owns there is taken back, within 0.3 s.
Result<std::shared_ptr<exchange::MetadataStore>> openEtcd(
    const std::map<std::string, std::string>& settings);

}  // namespace nixl::exchange_etcd
