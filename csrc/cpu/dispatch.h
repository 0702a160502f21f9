// Selects the instruction set at run time. SAM2_FAST_CHOOSE(stem, Params) defines
// `bool stem_cpu(params, num_threads, isa)`, which calls `bool stem(params, num_threads)` of the
// set `isa`. It expands to nothing except in the portable object (SAM2_FAST_DISPATCH). Use it in
// namespace sam2_fast.
#pragma once

#include "csrc/cpu/isa.h"

#if !defined(SAM2_FAST_DISPATCH)
#define SAM2_FAST_CHOOSE(stem, Params)
#elif !defined(SAM2_FAST_X86)
#define SAM2_FAST_CHOOSE(stem, Params) \
  bool stem##_cpu(const Params& p, int num_threads, Isa) { return portable::stem(p, num_threads); }
#else
#define SAM2_FAST_CHOOSE(stem, Params)                                     \
  namespace avx2 {                                                         \
  bool stem(const Params& p, int num_threads);                             \
  }                                                                        \
  namespace avx512 {                                                       \
  bool stem(const Params& p, int num_threads);                             \
  }                                                                        \
  namespace avx512_bf16 {                                                  \
  bool stem(const Params& p, int num_threads);                             \
  }                                                                        \
  bool stem##_cpu(const Params& p, int num_threads, Isa isa) {             \
    if (isa == Isa::kAvx2) return avx2::stem(p, num_threads);              \
    if (isa == Isa::kAvx512) return avx512::stem(p, num_threads);          \
    if (isa == Isa::kAvx512Bf16) return avx512_bf16::stem(p, num_threads); \
    return portable::stem(p, num_threads);                                 \
  }
#endif
