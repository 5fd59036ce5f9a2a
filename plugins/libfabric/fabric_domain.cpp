// See fabric_domain.h.
#include "fabric_domain.h"

#include <rdma/fi_errno.h>

namespace nixl::fabric {

Result<std::unique_ptr<Domain>> Domain::open(std::shared_ptr<const FabricLibrary> library,
                                             const InfoPtr& info) {
    std::unique_ptr<Domain> made(new Domain(std::move(library), info));
    NIXL_RETURN_IF_ERROR(made->start());
    return made;
}

Status Domain::start() {
    if (const int error = library_->openFabric(info_->fabric_attr, &fabric_, nullptr); error != 0) {
        return Status::backend(text("opening the network", error));
    }
    if (const int error = fi_domain(fabric_, info_.get(), &domain_, nullptr); error != 0) {
        return Status::backend(text("opening the device", error));
    }
    return {};
}

Domain::~Domain() {
    if (domain_ != nullptr) {
        fi_close(&domain_->fid);
    }
    if (fabric_ != nullptr) {
        fi_close(&fabric_->fid);
    }
}

std::string Domain::text(const std::string& what, long error) const {
    return "libfabric " + library_->version + ": " + label() + ": " + what + ": " +
           library_->error(error);
}

Result<Domain::Mapped> Domain::map(const MemoryRegion& region, uint64_t access) {
    const bool gpu = region.type == MemType::VRAM;
    if (gpu && (info_->caps & FI_HMEM) == 0) {
        return Status::notSupported("libfabric " + library_->version + ": " + label() +
                                    " cannot register VRAM of device " +
                                    std::to_string(region.deviceId) +
                                    ": it has no FI_HMEM; efa and verbs have it with GPU drivers");
    }
    iovec range{reinterpret_cast<void*>(region.address), region.size};
    fi_mr_attr attributes{};
    attributes.mr_iov = &range;
    attributes.iov_count = 1;
    attributes.access = access;
    if (gpu) {
        attributes.iface = FI_HMEM_CUDA;
        attributes.device.cuda = static_cast<int>(region.deviceId);
    }
    const size_t key_size = info_->domain_attr->mr_key_size;
    const uint64_t mask = key_size >= sizeof(uint64_t) ? ~0ULL : (1ULL << (8 * key_size)) - 1;
    Mapped mapped;
    int error = 0;
    // The keys are random, so that those of another registration or process never fit.
    for (int attempt = 0; attempt < 8; ++attempt) {
        attributes.requested_key = randomNumber() & mask;
        error = fi_mr_regattr(domain_, &attributes, 0, &mapped.handle);
        if (error != -FI_ENOKEY) {
            break;
        }
    }
    if (error != 0) {
        return Status::backend(text("registering " + std::to_string(region.size) + " bytes of " +
                                        memTypeName(region.type) + " at " +
                                        std::to_string(region.address),
                                    error));
    }
    mapped.descriptor = fi_mr_desc(mapped.handle);
    mapped.key.key = fi_mr_key(mapped.handle);
    mapped.key.base = modeHas(FI_MR_VIRT_ADDR) ? 0 : region.address;
    if (mapped.key.key == FI_KEY_NOTAVAIL) {
        fi_close(&mapped.handle->fid);
        return Status::notSupported(text("its keys are longer than 8 bytes", -FI_ENOSYS));
    }
    if ((access & (FI_REMOTE_READ | FI_REMOTE_WRITE)) != 0) {
        live_.insert(mapped.key.key);
    }
    return mapped;
}

void Domain::unmap(const Mapped& mapped) {
    live_.erase(mapped.key.key);
    if (mapped.handle != nullptr) {
        fi_close(&mapped.handle->fid);
    }
}

}  // namespace nixl::fabric
