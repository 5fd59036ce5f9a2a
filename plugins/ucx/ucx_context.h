// One UCX context: its configuration and the memory registered with it. Shared by the workers of a
// lane. Threads: any.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "nixl/backend.h"

#include "ucx_library.h"

namespace nixl::ucx {

struct UcxOptions {
    std::map<std::string, std::string> settings;  // UCX_… → value, without the prefix
    bool peerErrors = true;                       // UCP_ERR_HANDLING_MODE_PEER
    unsigned workers = 1;                         // each with a thread of its own
};

class UcxContext {
  public:
    static Result<std::unique_ptr<UcxContext>> create(const UcxLibrary& ucx,
                                                      const UcxOptions& options);
    ~UcxContext();
    UcxContext(const UcxContext&) = delete;
    UcxContext& operator=(const UcxContext&) = delete;

    const UcxLibrary& library() const { return ucx_; }
    const UcxOptions& options() const { return options_; }
    ucp_context_h handle() const { return handle_; }
    // "UCX 1.13.1: WHAT: TEXT OF THE STATUS"
    std::string text(const std::string& what, ucs_status_t status) const;

    // A mapped range and its packed remote key.
    struct Mapped {
        ucp_mem_h handle = nullptr;
        std::string key;
    };
    Result<Mapped> map(const MemoryRegion& region);
    void unmap(ucp_mem_h handle);

  private:
    UcxContext(const UcxLibrary& ucx, const UcxOptions& options) : ucx_(ucx), options_(options) {}
    Status open();
    Status takesGpus() const;
    // Whether the caller or the environment sets UCX_`name`.
    bool given(const std::string& name) const;

    const UcxLibrary& ucx_;
    const UcxOptions options_;
    ucp_context_h handle_ = nullptr;
};

}  // namespace nixl::ucx
