// Divides one allocation of scratch memory into arrays. Uses only integer arithmetic, so that
// kernels that are compiled without fused multiply-adds can include it, too.
#pragma once

#include <cstdint>

#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

inline int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }
inline int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

// Returns consecutive parts of one allocation, each aligned to a cache line. With null `memory` the
// pointers must not be used, and only the size `used` is computed.
struct Arena {
  char* memory;
  int64_t used = 0;
  template <class T>
  T* allocate(int64_t count) {
    T* const address = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return address;
  }
};

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
