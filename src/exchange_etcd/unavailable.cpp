// In a build without etcd (CMakeLists.txt beside it says why): asking for it is an error.
#ifdef NIXL_NO_ETCD
#include "exchange_etcd/etcd_store.h"

namespace nixl::exchange_etcd {

Result<std::shared_ptr<exchange::MetadataStore>> openEtcd(
    const std::map<std::string, std::string>& /*settings*/) {
    return Status::notSupported(
        "this build of NIXL has no etcd: the headers of libcurl or nlohmann-json were missing when"
        " it was compiled (Debian: libcurl4-openssl-dev nlohmann-json3-dev)");
}

}  // namespace nixl::exchange_etcd
#endif
