// One UCX context: its configuration and the memory registered with it. Shared by the workers of an
// engine. Threads: any.
#pragma once

#include <memory>
#include <string>

#include "nixl/backend.h"

#include "ucx_library.h"
#include "ucx_options.h"

namespace nixl::ucx {

class UcxContext {
  public:
    // `devices`: its UCX_NET_DEVICES; empty: as the options say.
    static Result<std::unique_ptr<UcxContext>> create(const UcxLibrary& ucx,
                                                      UcxOptions options,
                                                      const std::string& devices);
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
    UcxContext(const UcxLibrary& ucx, UcxOptions options)
        : ucx_(ucx), options_(std::move(options)) {}
    Status open();
    Status takesGpus() const;
    // Whether the caller or the environment sets UCX_`name`.
    bool given(const std::string& name) const;

    const UcxLibrary& ucx_;
    const UcxOptions options_;
    ucp_context_h handle_ = nullptr;
};

}  // namespace nixl::ucx
