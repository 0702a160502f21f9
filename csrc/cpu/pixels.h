// Vectors of pixels, for kernels that are compiled once per instruction set (see simd.h) and
// without implicit fused multiply-adds.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/cpu/simd.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace sam2_fast {
namespace SAM2_FAST_ISA {

// Rows that are resized together. A vector holds one pixel of each row: three channels and one
// unused lane.
constexpr int kRows = kLanes / 4;
constexpr int kPixel = 4;  // bytes of a pixel in such a vector
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// a * b + c, rounded only once if the instruction set has fused multiply-adds
static inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

// Elements of two vectors, selected by index; the elements of y follow those of x.
template <int... indices, typename Vector>
inline Vector shuffle(Vector x, Vector y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, indices...);
#else
  typedef decltype(x < y) Indices;
  return __builtin_shuffle(x, y, Indices{indices...});
#endif
}

// kLanes bytes as int32.
static inline VecInt widen(const uint8_t* bytes) {
#if defined(__AVX512F__)
  return (VecInt)_mm512_maskz_cvtepu8_epi32(
      0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#elif defined(__AVX2__)
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
#else  // insert zeros between bytes, then between pairs of bytes; little-endian only
  typedef uint8_t Sixteen __attribute__((vector_size(16)));
  typedef uint16_t Eight __attribute__((vector_size(16)));
  int32_t four;
  std::memcpy(&four, bytes, sizeof(four));
  const Eight pairs = (Eight)shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(
      (Sixteen)VecInt{four, 0, 0, 0}, Sixteen{});
  return (VecInt)shuffle<0, 8, 1, 9, 2, 10, 3, 11>(pairs, Eight{});
#endif
}

// x / 255 for x = 0 .. 255, correctly rounded. With fused multiply-adds the approximate quotient is
// corrected by its exact remainder.
static inline Vec divide_by_255(VecInt bytes) {
  const Vec x = __builtin_convertvector(bytes, Vec);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const Vec reciprocal = fill(1.0f / 255.0f), quotient = x * reciprocal;
  return fused(fused(-quotient, fill(255.0f), x), reciprocal, quotient);
#else
  return x / 255.0f;
#endif
}

// Applies the same shuffle within each group of four lanes: elements a, b, c, d of the groups of x
// and y, where indices from kLanes on select from y.
template <int a, int b, int c, int d, typename Vector>
inline Vector shuffle_quarters(Vector x, Vector y) {
#if defined(__AVX512F__)
  return shuffle<a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12,
                 c + 12, d + 12>(x, y);
#elif defined(__AVX__)
  return shuffle<a, b, c, d, a + 4, b + 4, c + 4, d + 4>(x, y);
#else
  return shuffle<a, b, c, d>(x, y);
#endif
}

// From interleaved to planar: pixels[i] is pixel i of kRows rows; channels[c] is channel c of four
// pixels of each row.
template <typename Vector>
inline void split_channels(const Vector pixels[4], Vector channels[3]) {
  constexpr int n = kLanes;
  const Vector a = shuffle_quarters<0, n, 1, n + 1>(pixels[0], pixels[1]),
               b = shuffle_quarters<0, n, 1, n + 1>(pixels[2], pixels[3]);
  channels[0] = shuffle_quarters<0, 1, n, n + 1>(a, b);
  channels[1] = shuffle_quarters<2, 3, n + 2, n + 3>(a, b);
  const Vector c = shuffle_quarters<2, n + 2, 3, n + 3>(pixels[0], pixels[1]),
               d = shuffle_quarters<2, n + 2, 3, n + 3>(pixels[2], pixels[3]);
  channels[2] = shuffle_quarters<0, 1, n, n + 1>(c, d);
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
