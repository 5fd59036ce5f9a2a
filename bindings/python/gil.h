// Giving the interpreter lock away, for the binding's files. Unlike nanobind's, taking it back is
// safe while the interpreter ends.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

namespace nixl::python {

// Python ends a thread that asks for the lock of an ending interpreter by unwinding it, which C++
// functions that do not throw answer with std::terminate. A frame of this class stops such a
// thread for good instead; the process is about to end.
class StopOnUnwind {
  public:
    ~StopOnUnwind() {
        while (armed_) {
            pause();
        }
    }
    void disarm() { armed_ = false; }

  private:
    bool armed_ = true;
};

class GilRelease {
  public:
    GilRelease() : state_(PyEval_SaveThread()) {}
    ~GilRelease() { restore(state_); }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

  private:
    [[gnu::noinline]] static void restore(PyThreadState* state) {
        StopOnUnwind guard;
        PyEval_RestoreThread(state);
        guard.disarm();
    }

    PyThreadState* state_;
};

class GilAcquire {
  public:
    GilAcquire() : state_(take()) {}
    ~GilAcquire() { PyGILState_Release(state_); }
    GilAcquire(const GilAcquire&) = delete;
    GilAcquire& operator=(const GilAcquire&) = delete;

  private:
    [[gnu::noinline]] static PyGILState_STATE take() {
        StopOnUnwind guard;
        const PyGILState_STATE state = PyGILState_Ensure();
        guard.disarm();
        return state;
    }

    PyGILState_STATE state_;
};

}  // namespace nixl::python
