// GELU, as accurate as the format in which its result is stored.
#pragma once

#include "csrc/cpu/tile.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

// x Phi(x) = max(x, 0) - |x| / 2 erfc(|x| / sqrt 2). -log2 of this erfc is approximated by a
// polynomial without a constant term, fitted on [0, 8] with errors weighted by their effect on the
// result. The error is 4e-8 rms on [-4, 4] and at most 2e-7 below 8 (torch in float32: 2e-7 and
// 1e-6).
struct Gelu {
  static Vec of(Vec x) {
    Vec t = x < 0.0f ? -x : x;
    t = t < 16.0f ? t : fill(16.0f);
    Vec p = fill(1.389264763e-6f);
    p = p * t - 2.259049354e-5f;
    p = p * t + 1.084984603e-4f;
    p = p * t + 3.209409566e-4f;
    p = p * t - 7.301571712e-3f;
    p = p * t + 5.266199292e-2f;
    p = p * t + 4.591519381e-1f;
    p = p * t + 1.151112149e+0f;
    return (x < 0.0f ? Vec{} : x) - 0.5f * t * exp2_of(-(p * t));
  }
};

template <class Dot>
struct GeluOf : Gelu {};

#if defined(__AVX512BF16__)
// As Gelu, with a shorter polynomial and a less accurate power of two. The polynomial is fitted on
// [0, 6.5] to minimize the maximum error relative to the result or to 0.003, which is 3e-5. With
// exp2_coarse the error is at most 2.2e-5, and 8e-6 rms for normally distributed values; rounding
// to bfloat16 adds 1.1e-3 rms.
template <>
struct GeluOf<DotBfloat16> {
  static Vec of(Vec x) {
    Vec t = x < 0.0f ? -x : x;
    t = t < 16.0f ? t : fill(16.0f);
    Vec p = fill(4.085376457e-4f);
    p = p * t - 6.623442317e-3f;
    p = p * t + 5.074083729e-2f;
    p = p * t + 4.609203396e-1f;
    p = p * t + 1.150623163e+0f;
    return (x < 0.0f ? Vec{} : x) - 0.5f * t * exp2_coarse(-(p * t));
  }
};
#endif

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
