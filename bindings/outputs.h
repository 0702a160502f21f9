// Checks of the memory that kernels write to.
#pragma once

#include <initializer_list>
#include <string>

#include "bindings/tensor.h"

#ifdef __linux__
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace sam2_fast {

// More threads than any machine has cores. OpenMP ends the process if it cannot start them.
constexpr int kMaxThreads = 1024;

inline void require_threads(int64_t num_threads) {
  if (num_threads >= 1 && num_threads <= kMaxThreads) return;
  refuse("num_threads", "1 to " + std::to_string(kMaxThreads), std::to_string(num_threads));
}

// The addresses from the first to the last element of a tensor.
struct Range {
  const char* begin;
  const char* end;

  explicit Range(const View& x) {
    int64_t last = 0;
    int64_t step = 1;
    for (int32_t i = x.t.ndim - 1; i >= 0; --i) {
      last += (x.t.shape[i] - 1) * (x.t.strides == nullptr ? step : x.t.strides[i]);
      step *= x.t.shape[i];
    }
    begin = x.data<const char>();
    end = begin + (last + 1) * (x.t.dtype.bits / 8);
  }
};

// Whether the first and the last byte can be written. On Linux the kernel copies them to themselves
// and reports an error instead of a signal; elsewhere, or if that is forbidden, true.
inline bool is_writable([[maybe_unused]] const Range& range) {
#ifdef __linux__
  char* const first = const_cast<char*>(range.begin);
  char* const last = const_cast<char*>(range.end) - 1;
  const iovec bytes[] = {{first, 1}, {last, 1}};
  const ssize_t copied = process_vm_readv(getpid(), bytes, 2, bytes, 2, 0);
  return copied == 2 || (copied == -1 && errno != EFAULT);
#else
  return true;
#endif
}

// A contiguous output on a CPU must be writable, and separate from the other tensors of the call.
inline void require_output(const View& out, std::initializer_list<const View*> others) {
  if (out.size() == 0 || out.t.device.type != dl::kCpu) return;
  const Range range(out);
  for (const View* const other : others) {
    if (other->size() == 0 || other->t.device.type != dl::kCpu) continue;
    const Range memory(*other);
    if (memory.begin < range.end && range.begin < memory.end) {
      refuse(out.name, "memory separate from that of " + other->name,
             "overlapping memory for " + text_of_sizes(out.sizes()));
    }
  }
  if (!is_writable(range)) {
    refuse(out.name, "memory that can be written",
           "read-only memory for " + text_of_sizes(out.sizes()));
  }
}

}  // namespace sam2_fast
