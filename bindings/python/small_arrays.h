// Small NumPy arrays of integers, read without Python's buffer protocol. Called with the GIL held.
#pragma once

#include <cstdint>

#include "module.h"

namespace nixl::python {

// Copies the numbers of `source` to `out` and returns how many, at most `room`; -1 where it is
// something else than an ndarray of one dimension and at most `room` int32 or int64, or where
// NumPy's layout is not the known one: the buffer protocol reads those.
//
// The buffer protocol takes some 600 instructions for each array, mostly to write its format down.
// These are 30: the fields that the macros of NumPy's own C interface read, whose places are part
// of its binary interface since 1.7. They are believed after arrays with known contents were read
// by them.
int readSmallArray(nb::handle source, int64_t* out, int room);

}  // namespace nixl::python
