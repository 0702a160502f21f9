// How scratch memory is divided. All in integers: kernels that must not be compiled with fused
// multiply-adds include this, too.
#pragma once

#include <cstdint>

#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

inline int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }
inline int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

// Hands out parts of one allocation, each from a whole cache line on; with no memory it only
// counts.
struct Arena {
  char* memory;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* const at = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return at;
  }
};

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
