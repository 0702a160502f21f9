// The memory encoder's mask, from low-resolution logits through four convolutions of stride 2, a
// few rows at a time. Level 0 is the resized mask of 16 h x 16 w pixels, level 4 one token a pixel.
// A row of level l is made when a row of level l + 1 asks for it, and only the rows that can still
// be asked for are held: the large levels never exist as a whole.
//
// A row lies in phases: with P = 16 >> l, phase q holds pixels q, P + q, 2 P + q, ... in a run of
// w. A tap of a convolution of stride 2 reads pixel 2 x + k of the level below, and for the pixels
// x of one phase those are one phase again, perhaps one place to the left: every row of a patch
// matrix is copied from runs side by side, and nothing is ever gathered by twos.
#pragma once

#include "csrc/cpu/gelu.h"
#include "csrc/memory_encoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

template <class Dot>
struct MaskRows {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kPad =
      16;  // before each run: its last number is the zero to the left of the image
  static constexpr int64_t kColumnsAtOnce = 128;  // of a product, where rows are shorter

  struct Level {
    int64_t channels, phases;
    int64_t group;  // rows made at once
    int64_t ring;   // rows held
    int64_t from_row, from_channels,
        from_phase;  // to the next one, in elements; channels in units of kDepth
    float* data;
    int64_t next;  // first row not made yet
  };

  const MemoryEncoderParams& p;
  const void* const* weights;  // [4] as the products read them
  Level levels[5];
  int32_t *first, *second;  // [phase][w] of level 0: the logits left and right of a pixel
  float* share;             // [phase][w]: of the right one
  float* expanded;  // [2][phases of level 0]: rows of logits at the mask's width, row y at y % 2
  int64_t held[2];  // which rows they are
  float *patches, *product;
  const float* logits;  // of the object at work

  static constexpr int64_t depth_of(int level) {
    return level < 2 ? 1 : Dot::kDepth;
  }  // in which a level is stored
  int64_t pitch() const { return kPad + round_up(p.width, 16); }
  int64_t columns_of(int l) const { return levels[l].group * levels[l].phases * p.width; }
  // a row's last run may be written past its end, by less than a vector
  int64_t stride_of(int l) const { return row_stride(columns_of(l) + kColumns); }
  int64_t steps_of(int l) const { return 9 * levels[l - 1].channels / depth_of(l - 1); }

  // Takes its memory from `arena`; level 4 goes to `out`: [channels / kDepth][out_stride] units,
  // `group` rows side by side.
  MaskRows(const MemoryEncoderParams& params, const void* const* matrices, int64_t group,
           float* out, int64_t out_stride, Arena& arena)
      : p(params), weights(matrices) {
    levels[4] = {p.convolutions[3].channels, 1, group, group, p.width, out_stride, 0, out, 0};
    for (int l = 3; l >= 0; --l) {
      const int64_t channels = l > 0 ? p.convolutions[l - 1].channels : 1, phases = 16 >> l,
                    width = phases * p.width;
      const int64_t units = channels / depth_of(l),
                    at_once = l > 0 && width < kColumnsAtOnce ? kColumnsAtOnce / width : 1;
      const int64_t ring = 2 * levels[l + 1].group + 1;
      levels[l] = {channels,         phases,  at_once, ring, units * phases * pitch(),
                   phases * pitch(), pitch(), nullptr, 0};
      levels[l].data = arena.take<float>(ring * levels[l].from_row) + kPad;
    }
    first = arena.take<int32_t>(16 * p.width), second = arena.take<int32_t>(16 * p.width),
    share = arena.take<float>(16 * p.width);
    expanded = arena.take<float>(2 * levels[0].from_row) + kPad;
    int64_t most_patches = 0, most_product = 0;
    for (int l = 1; l <= 4; ++l) {
      const int64_t patch_floats = steps_of(l) * stride_of(l),
                    floats = levels[l].channels * stride_of(l);
      most_patches = patch_floats > most_patches ? patch_floats : most_patches,
      most_product = floats > most_product ? floats : most_product;
    }
    patches = arena.take<float>(most_patches + kColumns),
    product = arena.take<float>(most_product + kColumns);
  }

  bool resized() const { return p.logit_height != 16 * p.height || p.logit_width != 16 * p.width; }

  // Where pixel i of `size` lies among `from`: after which one, and how far towards the next.
  static int64_t place(int64_t i, int64_t from, int64_t size, float* beyond) {
    const double at =
        (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(size) -
        0.5;
    const int64_t whole = at > 0 ? static_cast<int64_t>(at) : 0,
                  before = whole < from - 1 ? whole : from - 1;
    *beyond =
        before < from - 1 && at > 0 ? static_cast<float>(at - static_cast<double>(before)) : 0.0f;
    return before;
  }

  void prepare() {
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < p.width; ++j) {
        const int64_t i = q * p.width + j,
                      left = place(16 * j + q, p.logit_width, 16 * p.width, share + i);
        first[i] = static_cast<int32_t>(left),
        second[i] = static_cast<int32_t>(left + (left < p.logit_width - 1));
      }
    }
  }

  // The next row of level 4 to be made is `row`, a multiple of its group.
  void start(int64_t object, int64_t row) {
    logits = p.logits + object * p.logit_height * p.logit_width;
    held[0] = held[1] = -1;
    for (int l = 4; l >= 0; --l, row = row > 0 ? 2 * row - 1 : 0) levels[l].next = row;
  }

  // Make the rows of a level before `until`.
  void produce(int l, int64_t until) {
    Level& at = levels[l];
    while (at.next < until) {
      const int64_t count = until - at.next < at.group ? until - at.next : at.group;
      if (l > 0) produce(l - 1, 2 * (at.next + count));
      if (l == 0) mask_row(at.next);
      else if (l == 1) convolve<DotFloat, DotFloat>(l, count);
      else if (l == 2) convolve<DotFloat, Dot>(l, count);
      else convolve<Dot, Dot>(l, count);
      at.next += count;
    }
  }

  const float* expand(int64_t y) {
    float* const out = expanded + y % 2 * levels[0].from_row;
    if (held[y % 2] == y) return out;
    held[y % 2] = y;
    const float* const row = logits + y * p.logit_width;
    for (int64_t q = 0; q < 16; ++q) {
      float* const run = out + q * levels[0].from_phase;
      for (int64_t j = 0, i = q * p.width; j < p.width; ++j, ++i) {
        run[j] = resized() ? (1.0f - share[i]) * row[first[i]] + share[i] * row[second[i]]
                           : row[first[i]];
      }
    }
    return out;
  }

  // 20 sigmoid(x) - 10 = 10 (1 - e) / (1 + e) with the sign of x, e = exp(-|x|)
  static Vec soft(Vec x) {
    const Vec e = exp2_of((x < 0.0f ? x : -x) * kLog2E), size = 10.0f * (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -size : size;
  }

  void mask_row(int64_t y) {
    float beyond = 0;
    const int64_t above = place(y, p.logit_height, 16 * p.height, &beyond),
                  below = above + (above < p.logit_height - 1);
    const float *const a = expand(above), *const b = resized() ? expand(below) : a;
    float* const out = levels[0].data + y % levels[0].ring * levels[0].from_row;
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < p.width; j += kLanes) {
        const int64_t i = q * levels[0].from_phase + j;
        const Vec x =
            resized() ? (1.0f - beyond) * load(a + i) + beyond * load(b + i) : load(a + i);
        store(out + i, p.binarize ? (x > 0.0f ? fill(10.0f) : fill(-10.0f)) : soft(x));
      }
    }
  }

  // patches[place, channel][row, phase, j] of the next `count` rows of level l
  void patch(int l, int64_t count) {
    const Level &to = levels[l], &from = levels[l - 1];
    const int64_t units = from.channels / depth_of(l - 1), stride = stride_of(l);
    float* row = patches;
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t u = 0; u < units; ++u, row += stride) {
        float* at = row;
        for (int64_t g = 0; g < count; ++g) {
          const int64_t y = 2 * (to.next + g) + tap / 3 - 1;
          const float* const source =
              from.data + (y < 0 ? 0 : y % from.ring * from.from_row) + u * from.from_channels;
          for (int64_t q = 0; q < to.phases; ++q, at += p.width) {
            const int64_t x =
                2 * q + tap % 3 - 1;  // phase -1 is the last one, one place to the left
            const float* const run = x < 0 ? source + (from.phases - 1) * from.from_phase - 1
                                           : source + x * from.from_phase;
            for (int64_t j = 0; j < p.width; j += kLanes)
              store(at + j, y < 0 ? Vec{} : load(run + j));
          }
        }
      }
    }
  }

  // The next `count` rows of level l: products by `By`, stored for `To`.
  template <class By, class To>
  void convolve(int l, int64_t count) {
    const int64_t stride = stride_of(l), steps = steps_of(l),
                  columns = round_up(count * levels[l].phases * p.width, kColumns);
    const Left<typename By::Unit> weight{static_cast<const typename By::Unit*>(weights[l - 1]),
                                         steps, 1};
    patch(l, count);
    multiply<By>(weight, reinterpret_cast<const typename By::Unit*>(patches), stride, product,
                 stride, levels[l].channels, columns, steps, false);
    for (int64_t g = 0; g < count; ++g) {
      for (int64_t q = 0; q < levels[l].phases; ++q)
        finish<To>(l, levels[l].next + g, q, product + (g * levels[l].phases + q) * p.width);
    }
  }

  // Bias, norm and GELU of one run, to where its level lies.
  template <class To>
  void finish(int l, int64_t y, int64_t phase, const float* in) const {
    const Level& to = levels[l];
    const MaskConvolution& c = p.convolutions[l - 1];
    const int64_t stride = stride_of(l);
    float* const out = to.data + y % to.ring * to.from_row + phase * to.from_phase;
    for (int64_t j = 0; j < p.width; j += kLanes) {
      const auto value = [&](int64_t r) { return load(in + r * stride + j) + c.bias[r]; };
      Vec mean = Vec{}, square = Vec{};
      for (int64_t r = 0; r < c.channels; ++r) mean = mean + value(r);
      mean = mean / static_cast<float>(c.channels);
      for (int64_t r = 0; r < c.channels; ++r)
        square = square + (value(r) - mean) * (value(r) - mean);
      const Vec variance = square / static_cast<float>(c.channels) + p.epsilon;
      const Vec scale = 1.0f / sqrt_of(variance);
      for (int64_t r = 0; r < c.channels; r += To::kDepth) {
        Vec values[To::kDepth];
        for (int d = 0; d < To::kDepth; ++d)
          values[d] = GeluOf<To>::of((value(r + d) - mean) * scale * c.norm_weight[r + d] +
                                     c.norm_bias[r + d]);
        To::put(values,
                reinterpret_cast<typename To::Unit*>(out) + r / To::kDepth * to.from_channels + j);
      }
    }
  }
};

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
