// Which pixels of a line a resized pixel is made of, and with which weights: torch's antialiased
// bilinear filter in float32 and Pillow's bicubic one in fixed point, bit-exact. Compiled without
// fused multiply-adds, in an object per instruction set, see simd.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

struct Taps {
  int32_t first, count;  // source pixels
  int32_t rounded;  // of them, after the first: products are rounded before they are summed; the
                    // rest are fused where the set can
};

// The windows of one axis. `room` weights a pixel, zeros after the window.
template <typename Number>
struct Axis {
  Taps* taps = nullptr;
  Number* weights = nullptr;
  int64_t room = 0;
  int32_t fused = 0;  // the largest number of taps that are neither the first nor rounded
};

constexpr int kWeightBits = 22;  // of a fixed-point weight after the point: 32 less 8 of a pixel,
                                 // less 2 for a sum's overshoot

// Weights that a window may have, and as many zeros as a window before its end may be read over.
static inline int64_t taps_room(int64_t from, int64_t to, int radius) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  return 2 * (2 * static_cast<int64_t>(std::ceil(radius * (scale < 1 ? 1 : scale))) + 2);
}

// The triangle of half width 1, stretched where pixels are merged. torch mixes float32 and float64
// in this way.
static inline Taps taps_of(int64_t i, int64_t from, int64_t to, float* weights) {
  if (from == to) {  // the neighbours have no weight
    weights[0] = 1;
    return {static_cast<int32_t>(i), 1, 0};
  }
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  const float support = scale >= 1.0f ? scale : 1.0f;
  const double inverse = scale >= 1.0f ? static_cast<float>(1.0 / static_cast<double>(scale)) : 1.0;
  const float center =
      static_cast<float>(static_cast<double>(scale) * (static_cast<double>(i) + 0.5));
  const int64_t first = smaller(
      larger(static_cast<int64_t>(static_cast<double>(center - support) + 0.5), 0), from - 1);
  const int64_t end =
      smaller(static_cast<int64_t>(static_cast<double>(center + support) + 0.5), from);
  const int64_t count =
      smaller(larger(end - first, 0),
              2 * static_cast<int64_t>(std::ceil(static_cast<double>(support))) + 1);
  float sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    const float at = static_cast<float>(
        (static_cast<double>(static_cast<float>(first + j) - center) + 0.5) * inverse);
    const float distance = at < 0 ? -at : at;
    weights[j] = distance < 1.0f ? 1.0f - distance : 0.0f;
    sum += weights[j];
  }
  for (int64_t j = 0; j < count && sum != 0; ++j) weights[j] /= sum;
  // torch's compiler takes taps after the first by fours, products first, and fuses what is left
  // over
  const int64_t rounded = count < 1 ? 0 : (count - 1) / 4 * 4;
  return {static_cast<int32_t>(first), static_cast<int32_t>(count), static_cast<int32_t>(rounded)};
}

// Keys' cubic convolution with a = -1/2.
static inline double cubic(double x) {
  x = x < 0 ? -x : x;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

// The cubic, stretched where pixels are merged; rounded to fixed point after the weights were made
// to sum to one in float64.
static inline Taps taps_of(int64_t i, int64_t from, int64_t to, int32_t* weights) {
  if (from == to) {  // the neighbours have no weight
    weights[0] = 1 << kWeightBits;
    return {static_cast<int32_t>(i), 1, 0};
  }
  const double scale = static_cast<double>(from) / static_cast<double>(to),
               stretch = scale < 1.0 ? 1.0 : scale;
  const double support = 2.0 * stretch, inverse = 1.0 / stretch,
               center = (static_cast<double>(i) + 0.5) * scale;
  const int64_t first = larger(static_cast<int64_t>(center - support + 0.5), 0);
  const int64_t count = smaller(static_cast<int64_t>(center + support + 0.5), from) - first;
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

// `places` >= to: what is beyond `to` has no weight.
template <typename Number>
inline void fill_axis(int64_t from, int64_t to, int64_t places, Axis<Number>* axis) {
  std::memset(axis->weights, 0, sizeof(Number) * static_cast<size_t>(places * axis->room));
  for (int64_t i = 0; i < places; ++i) {
    axis->taps[i] = i < to ? taps_of(i, from, to, axis->weights + i * axis->room) : Taps{0, 1, 0};
    const int32_t fused = axis->taps[i].count - 1 - axis->taps[i].rounded;
    axis->fused = fused > axis->fused ? fused : axis->fused;
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
