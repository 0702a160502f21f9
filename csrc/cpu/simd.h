// Vectors of floats for kernels that are compiled once per instruction set. All of this is in the
// namespace of the instruction set. Nothing here may instantiate a template of the standard
// library, because the linker would keep a single copy for all sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef SAM2_FAST_ISA
#define SAM2_FAST_ISA portable
#endif

namespace sam2_fast {
namespace SAM2_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileVectors = 4, kAccumulators = 24;  // 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileVectors = 2, kAccumulators = 12;  // 16 registers
#else
constexpr int kLanes = 4, kTileVectors = 2, kAccumulators = 12;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));
typedef float VecUnaligned
    __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));  // for memory of any alignment

static inline Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
static inline void store(float* p, Vec x) { *reinterpret_cast<VecUnaligned*>(p) = x; }
static inline Vec fill_bits(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return reinterpret_cast<Vec>(VecInt{} + bits);
}
static inline Vec fill(float x) { return fill_bits(&x); }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Correctly rounded, like std::sqrt. Loops over std::sqrt are not vectorized, because it sets
// errno.
static inline Vec sqrt_of(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

static inline float largest(Vec x) {
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

static inline float sum(Vec x) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += x[i];
  return s;
}

// x = n + r with an integer n and |r| <= 1/2; x is clamped to -126 from below.
struct Split {
  Vec r;
  VecInt exponent;  // n, shifted to the exponent bits of a float
};

static inline Split split_of(Vec x) {
  const Vec rounding_shift =
      fill(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = x < -126.0f ? fill(-126.0f) : x;
  const Vec shifted = x + rounding_shift;
  return {x - (shifted - rounding_shift), reinterpret_cast<VecInt>(shifted) << 23};
}

static inline Vec shift_exponent(Vec p, VecInt exponent) {
  return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(p) + exponent);
}

// 2^x for x <= 0, with an error of at most 2 ulp; 2^-126 for x < -126; NaN for NaN. 2^r = 1 + r
// P(r) on [-1/2, 1/2] with the coefficients of exp2f in Cephes.
static inline Vec exp2_of(Vec x) {
  const Split s = split_of(x);
  Vec p = fill(1.535336188319500e-4f);
  p = p * s.r + 1.339887440266574e-3f;
  p = p * s.r + 9.618437357674640e-3f;
  p = p * s.r + 5.550332471162809e-2f;
  p = p * s.r + 2.402264791363012e-1f;
  p = p * s.r + 6.931472028550421e-1f;
  p = p * s.r + 1.0f;
  return shift_exponent(p, s.exponent);
}

// As exp2_of with a maximum relative error of 1.0e-4, a twentieth of the error of rounding to
// bfloat16.
static inline Vec exp2_coarse(Vec x) {
  const Split s = split_of(x);
  Vec p = fill(5.500874556e-2f);
  p = p * s.r + 2.422107562e-1f;
  p = p * s.r + 6.932829248e-1f;
  p = p * s.r + 1.0f;
  return shift_exponent(p, s.exponent);
}

static inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

static inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float from_bfloat16(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }

static inline uint16_t to_bfloat16(float x) {  // to nearest, ties to even
  const uint32_t bits = to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // after the shift the exponent is too small by 112; the product corrects it, also for subnormals
  return from_bits(sign | to_bits(from_bits(rest << 13) * 5.192296858534828e33f));
}

static inline uint16_t to_float16(float x) {  // to nearest, ties to even
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (rest < 0x38800000u) {
    // subnormal: adding 1/2 rounds to a multiple of 2^-24, which is then in the low bits
    return static_cast<uint16_t>(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13));
}

// Dot products of float32 or bfloat16 operands, summed in float32. A Unit is the operand of one
// step of the sum: kDepth packed elements. pack(x, stride) packs x[0] and, if kDepth is 2,
// x[stride]. store_rows interleaves kDepth rows of elements to one row of units. store_row stores
// elements of one row from index i on, packed with their neighbours. exp2 is as accurate as a unit
// requires.
struct DotFloat {
  typedef float Unit;
  static constexpr int kDepth = 1;
  static inline Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
  static inline Unit pack(const float* x, int64_t) { return x[0]; }
  static inline Vec exp2(Vec x) { return exp2_of(x); }
  static inline void store_rows(const Vec* rows, Unit* out) { store(out, rows[0]); }
  static inline void store_row(Vec row, Unit* data, int64_t i) { store(data + i, row); }
};

#if defined(__AVX512BF16__)
struct DotBfloat16 {  // a unit is a pair of bfloat16 in 32 bits
  typedef uint32_t Unit;
  static constexpr int kDepth = 2;
  static inline Vec add(Vec sum, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)a, (__m512bh)(__m512i)b);
  }
  static inline Unit pack(const float* x, int64_t stride) {
    return to_bfloat16(x[0]) | static_cast<uint32_t>(to_bfloat16(x[stride])) << 16;
  }
  static inline Vec exp2(Vec x) { return exp2_coarse(x); }
  static inline __m256i round(Vec x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }
  static inline void store_rows(const Vec* rows, Unit* out) {
    const __m512i first = _mm512_cvtepu16_epi32(round(rows[0])),
                  second = _mm512_cvtepu16_epi32(round(rows[1]));
    store(reinterpret_cast<float*>(out),
          (Vec)_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
  static inline void store_row(Vec row, Unit* data, int64_t i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(data) + i),
                        round(row));
  }
};
#endif

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
