// The indices of one side of a prepared transfer, read from Python. Called with the GIL held.
#pragma once

#include <span>

#include <nanobind/ndarray.h>

#include "module.h"

namespace nixl::python {

// A view of the caller's array where it holds int32 or int64 without gaps, else a copy. Throws
// nixl::Error or a Python TypeError that names the side and the index.
class Indices {
  public:
    Indices(nb::handle source, const char* side);
    Indices(const Indices&) = delete;
    Indices& operator=(const Indices&) = delete;
    ~Indices();

    size_t size() const { return size_; }
    bool narrow() const { return narrow_ != nullptr; }
    std::span<const int32_t> narrowSpan() const { return {narrow_, size_}; }
    std::span<const int64_t> wideSpan();

  private:
    using AnyArray = nb::ndarray<nb::ro>;
    static constexpr size_t kFew = 16;  // so many need no memory of their own

    int64_t* place(size_t count);
    bool readBuffer(nb::handle source);
    void readSequence(nb::handle source, const char* side);
    void readArray(const char* side);
    template <typename T>
    bool copyAs();

    AnyArray array_;
    Py_buffer buffer_{};  // held where buffer_.obj is not null
    int64_t few_[kFew];
    std::vector<int64_t> copy_;
    const int32_t* narrow_ = nullptr;
    const int64_t* wide_ = nullptr;
    size_t size_ = 0;
};

}  // namespace nixl::python
