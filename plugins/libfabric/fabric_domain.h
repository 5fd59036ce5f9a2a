// One device of one provider, and the memory registered with it. Threads: one at a time (the
// rail's lock).
#pragma once

#include <memory>
#include <set>
#include <string>

#include <rdma/fi_domain.h>

#include "nixl/backend.h"

#include "fabric_rails.h"
#include "fabric_wire.h"

namespace nixl::fabric {

class Domain {
  public:
    static Result<std::unique_ptr<Domain>> open(std::shared_ptr<const FabricLibrary> library,
                                                const InfoPtr& info);
    ~Domain();
    Domain(const Domain&) = delete;
    Domain& operator=(const Domain&) = delete;

    struct Mapped {
        fid_mr* handle = nullptr;
        void* descriptor = nullptr;  // for local use
        RailKey key;
    };
    // `access` as for fi_mr_reg.
    Result<Mapped> map(const MemoryRegion& region, uint64_t access);
    void unmap(const Mapped& mapped);
    bool live(uint64_t key) const { return live_.contains(key); }
    // From now on the key is not given to who asks.
    void revoke(uint64_t key) { live_.erase(key); }

    const FabricLibrary& library() const { return *library_; }
    const fi_info& info() const { return *info_; }
    fid_fabric* fabric() const { return fabric_; }
    fid_domain* handle() const { return domain_; }
    std::string provider() const { return info_->fabric_attr->prov_name; }
    std::string device() const { return info_->domain_attr->name; }
    // "tcp;ofi_rxm (eth0)"
    std::string label() const { return provider() + " (" + device() + ")"; }
    bool modeHas(int bit) const { return (info_->domain_attr->mr_mode & bit) != 0; }
    // TCP by libfabric itself. 1.17 crashes when a connection is given up (an endpoint closed, a
    // send that fails) in the middle of the answer to a read: so nothing is closed or sent while
    // reads are under way, and what must end is ended by its sockets.
    bool overSockets() const { return provider() == "tcp;ofi_rxm"; }
    // "libfabric 1.17: tcp;ofi_rxm (eth0): WHAT: why"
    std::string text(const std::string& what, long error) const;

  private:
    Domain(std::shared_ptr<const FabricLibrary> library, InfoPtr info)
        : library_(std::move(library)), info_(std::move(info)) {}
    Status start();

    const std::shared_ptr<const FabricLibrary> library_;
    const InfoPtr info_;
    fid_fabric* fabric_ = nullptr;
    fid_domain* domain_ = nullptr;
    std::set<uint64_t> live_;
};

}  // namespace nixl::fabric
