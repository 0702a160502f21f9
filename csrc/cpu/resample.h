// The source pixels along one axis that contribute to a resized pixel, and their weights: bit-exact
// with torch's antialiased bilinear filter in float32 and with Pillow's bicubic filter in fixed
// point. Compiled without fused multiply-adds, once per instruction set (see simd.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

struct Taps {
  int32_t first, count;  // source pixels
  // After the first tap, the products of `rounded` taps are rounded before they are added; the
  // remaining taps use fused multiply-adds if the instruction set has them.
  int32_t rounded;
};

// The taps and weights of all target pixels of one axis.
template <typename Scalar>
struct Axis {
  Taps* taps = nullptr;
  Scalar* weights = nullptr;
  int64_t weights_per_pixel = 0;  // zeros after the weights of the taps
  int32_t max_fused = 0;          // maximum over the pixels of count - 1 - rounded
};

// Fraction bits of a fixed-point weight: 32, less 8 for a pixel, less 2 because a weighted sum can
// exceed the range of a pixel.
constexpr int kWeightBits = 22;

// Storage for the weights of a pixel: the maximum number of its taps, and as many zeros, because a
// loop over the maximum tap count reads past the weights of pixels with fewer taps.
static inline int64_t weight_capacity(int64_t source_size, int64_t target_size, int radius) {
  const double scale = static_cast<double>(source_size) / static_cast<double>(target_size);
  return 2 * (2 * static_cast<int64_t>(std::ceil(radius * (scale < 1 ? 1 : scale))) + 2);
}

// Bilinear: a triangle of half width 1, stretched by the scale when downsampling. The mix of
// float32 and float64 is torch's.
static inline Taps taps_of(int64_t i, int64_t source_size, int64_t target_size, float* weights) {
  if (source_size == target_size) {  // only the pixel itself has weight
    weights[0] = 1;
    return {static_cast<int32_t>(i), 1, 0};
  }
  const float scale = static_cast<float>(source_size) / static_cast<float>(target_size);
  const float support = scale >= 1.0f ? scale : 1.0f;
  const double inverse = scale >= 1.0f ? static_cast<float>(1.0 / static_cast<double>(scale)) : 1.0;
  const float center =
      static_cast<float>(static_cast<double>(scale) * (static_cast<double>(i) + 0.5));
  const int64_t first =
      smaller(larger(static_cast<int64_t>(static_cast<double>(center - support) + 0.5), 0),
              source_size - 1);
  const int64_t end =
      smaller(static_cast<int64_t>(static_cast<double>(center + support) + 0.5), source_size);
  const int64_t count =
      smaller(larger(end - first, 0),
              2 * static_cast<int64_t>(std::ceil(static_cast<double>(support))) + 1);
  float sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    const float offset = static_cast<float>(
        (static_cast<double>(static_cast<float>(first + j) - center) + 0.5) * inverse);
    const float distance = offset < 0 ? -offset : offset;
    weights[j] = distance < 1.0f ? 1.0f - distance : 0.0f;
    sum += weights[j];
  }
  for (int64_t j = 0; j < count && sum != 0; ++j) weights[j] /= sum;
  // in torch's compiled loop the taps after the first are unrolled by four with products rounded
  // separately; the remaining ones are fused
  const int64_t rounded = count < 1 ? 0 : (count - 1) / 4 * 4;
  return {static_cast<int32_t>(first), static_cast<int32_t>(count), static_cast<int32_t>(rounded)};
}

// Cubic convolution kernel of R. Keys with a = -1/2.
static inline double cubic(double x) {
  x = x < 0 ? -x : x;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

// Bicubic: the cubic kernel, stretched by the scale when downsampling. The weights are normalized
// to sum to one in float64, then rounded to fixed point.
static inline Taps taps_of(int64_t i, int64_t source_size, int64_t target_size, int32_t* weights) {
  if (source_size == target_size) {  // only the pixel itself has weight
    weights[0] = 1 << kWeightBits;
    return {static_cast<int32_t>(i), 1, 0};
  }
  const double scale = static_cast<double>(source_size) / static_cast<double>(target_size),
               stretch = scale < 1.0 ? 1.0 : scale;
  const double support = 2.0 * stretch, inverse = 1.0 / stretch,
               center = (static_cast<double>(i) + 0.5) * scale;
  const int64_t first = larger(static_cast<int64_t>(center - support + 0.5), 0);
  const int64_t count = smaller(static_cast<int64_t>(center + support + 0.5), source_size) - first;
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    sum += cubic((static_cast<double>(j + first) - center + 0.5) * inverse);
  }
  for (int64_t j = 0; j < count; ++j) {
    double weight = cubic((static_cast<double>(j + first) - center + 0.5) * inverse);
    weight = (sum != 0.0 ? weight / sum : weight) * (1 << kWeightBits);
    weights[j] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
  }
  return {static_cast<int32_t>(first), static_cast<int32_t>(count), 0};
}

// Computes `count` >= target_size entries; those from target_size on have zero weights.
template <typename Scalar>
inline void fill_axis(int64_t source_size, int64_t target_size, int64_t count, Axis<Scalar>* axis) {
  std::memset(axis->weights, 0,
              sizeof(Scalar) * static_cast<size_t>(count * axis->weights_per_pixel));
  for (int64_t i = 0; i < count; ++i) {
    axis->taps[i] = i < target_size ? taps_of(i, source_size, target_size,
                                              axis->weights + i * axis->weights_per_pixel)
                                    : Taps{0, 1, 0};
    const int32_t fused = axis->taps[i].count - 1 - axis->taps[i].rounded;
    axis->max_fused = fused > axis->max_fused ? fused : axis->max_fused;
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
