// Vectors of pixels for kernels that are compiled once per instruction set, without fused multiply-adds unless written out; see simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/cpu/simd.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace sam2_fast {
namespace SAM2_FAST_ISA {

constexpr int kRows = kLanes / 4;  // rows that are resized along together: a vector holds a pixel of each, three channels and a rest
constexpr int kPixel = 4;          // bytes of a pixel side by side with others
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// a * b + c, rounded once where the set can
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

static inline VecInt widen(const uint8_t* bytes) {
#if defined(__AVX512F__)
  return (VecInt)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#elif defined(__AVX2__)
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
#else  // zeros are put between bytes, then between pairs: the order of a little-endian processor
  typedef uint8_t Sixteen __attribute__((vector_size(16)));
  typedef uint16_t Eight __attribute__((vector_size(16)));
  Sixteen x{};
  std::memcpy(&x, bytes, kLanes);
  const Eight pairs = (Eight)__builtin_shuffle(x, Sixteen{}, Sixteen{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  return (VecInt)__builtin_shuffle(pairs, Eight{}, Eight{0, 8, 1, 9, 2, 10, 3, 11});
#endif
}

// 0..255 -> x / 255, rounded once. With fused products a quotient that is an ulp off is mended by its exact remainder.
static inline Vec over_255(VecInt bytes) {
  const Vec x = __builtin_convertvector(bytes, Vec);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const Vec reciprocal = fill(1.0f / 255.0f), quotient = x * reciprocal;
  return fused(fused(-quotient, fill(255.0f), x), reciprocal, quotient);
#else
  return x / 255.0f;
#endif
}

// a, b, c, d in each quarter of a vector, for shuffles that stay in it
template <int a, int b, int c, int d>
inline VecInt quarters() {
#if defined(__AVX512F__)
  return VecInt{a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12};
#elif defined(__AVX__)
  return VecInt{a, b, c, d, a + 4, b + 4, c + 4, d + 4};
#else
  return VecInt{a, b, c, d};
#endif
}

// Four pixels of kRows rows -> by channel four pixels of each row.
template <typename Many>
inline void turn(const Many pixels[4], Many channels[3]) {
  constexpr int n = kLanes;
  const VecInt low = quarters<0, n, 1, n + 1>(), high = quarters<2, n + 2, 3, n + 3>();
  const Many a = __builtin_shuffle(pixels[0], pixels[1], low), b = __builtin_shuffle(pixels[2], pixels[3], low);
  channels[0] = __builtin_shuffle(a, b, quarters<0, 1, n, n + 1>());
  channels[1] = __builtin_shuffle(a, b, quarters<2, 3, n + 2, n + 3>());
  const Many c = __builtin_shuffle(pixels[0], pixels[1], high), d = __builtin_shuffle(pixels[2], pixels[3], high);
  channels[2] = __builtin_shuffle(c, d, quarters<0, 1, n, n + 1>());
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
