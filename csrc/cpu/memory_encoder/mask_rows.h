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
namespace {

template <class Dot>
struct MaskRows {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kPad =
      16;  // before a run: its last number is the zero left of the image
  static constexpr int64_t kColumnsAtOnce = 128;  // of a product, where rows are shorter

  struct Level {
    int64_t channels, phases;
    int64_t group;          // rows made at once
    int64_t ring;           // rows held
    int64_t row_step;       // to the next one, in elements
    int64_t channels_step;  // to the next kDepth channels
    int64_t phase_step;
    float* data;
    int64_t next;  // first row not made yet
  };

  const MemoryEncoderParams& params;
  const void* const* weights;  // [4] as the products read them
  Level levels[5] = {};
  int32_t *left, *right;  // [phase][w] of level 0: the logits left and right of a pixel
  float* right_share;     // [phase][w]
  float* expanded;  // [2][phases of level 0]: rows of logits at the mask's width, row y at y % 2
  int64_t expanded_rows[2] = {-1, -1};  // which rows they are
  float *patches, *product;
  const float* logits = nullptr;  // of the current object

  // Channels in an element of a level.
  static constexpr int64_t depth_of(int level) { return level < 2 ? 1 : Dot::kDepth; }
  int64_t pitch() const { return kPad + round_up(params.width, 16); }
  int64_t columns_of(int l) const { return levels[l].group * levels[l].phases * params.width; }
  // a row's last run may be written past its end, by less than a vector
  int64_t stride_of(int l) const { return row_stride(columns_of(l) + kColumns); }
  int64_t steps_of(int l) const { return 9 * levels[l - 1].channels / depth_of(l - 1); }

  // Takes its memory from `arena`; level 4 goes to `out`: [channels / kDepth][out_stride] units,
  // `group` rows side by side.
  MaskRows(const MemoryEncoderParams& call, const void* const* matrices, int64_t group, float* out,
           int64_t out_stride, Arena& arena)
      : params(call), weights(matrices) {
    const int64_t width = params.width;
    levels[4] = {channels_of(4), 1, group, group, width, out_stride, 0, out, 0};
    for (int l = 3; l >= 0; --l) {
      const int64_t phases = 16 >> l, row = phases * width;
      const int64_t at_once = l > 0 && row < kColumnsAtOnce ? kColumnsAtOnce / row : 1;
      Level& level = levels[l];
      level.channels = channels_of(l);
      level.phases = phases;
      level.group = at_once;
      level.ring = 2 * levels[l + 1].group + 1;
      level.row_step = level.channels / depth_of(l) * phases * pitch();
      level.channels_step = phases * pitch();
      level.phase_step = pitch();
      level.data = arena.take<float>(level.ring * level.row_step) + kPad;
      level.next = 0;
    }
    left = arena.take<int32_t>(16 * width);
    right = arena.take<int32_t>(16 * width);
    right_share = arena.take<float>(16 * width);
    expanded = arena.take<float>(2 * levels[0].row_step) + kPad;
    int64_t most_patches = 0, most_product = 0;
    for (int l = 1; l <= 4; ++l) {
      most_patches = larger(steps_of(l) * stride_of(l), most_patches);
      most_product = larger(levels[l].channels * stride_of(l), most_product);
    }
    patches = arena.take<float>(most_patches + kColumns);
    product = arena.take<float>(most_product + kColumns);
  }

  int64_t channels_of(int l) const {
    return l > 0 ? params.weights.convolutions[l - 1].channels : 1;
  }

  bool resized() const {
    return params.logit_height != 16 * params.height || params.logit_width != 16 * params.width;
  }

  // Where pixel i of `size` lies among `from`: after which one, and how far towards the next.
  static int64_t source_of(int64_t i, int64_t from, int64_t size, float* beyond) {
    const double scaled = (static_cast<double>(i) + 0.5) * static_cast<double>(from);
    const double at = scaled / static_cast<double>(size) - 0.5;
    const int64_t whole = at > 0 ? static_cast<int64_t>(at) : 0;
    const int64_t before = smaller(whole, from - 1);
    const bool between = before < from - 1 && at > 0;
    *beyond = between ? static_cast<float>(at - static_cast<double>(before)) : 0.0f;
    return before;
  }

  void prepare() {
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < params.width; ++j) {
        const int64_t i = q * params.width + j;
        const int64_t before =
            source_of(16 * j + q, params.logit_width, 16 * params.width, right_share + i);
        left[i] = static_cast<int32_t>(before);
        right[i] = static_cast<int32_t>(before + (before < params.logit_width - 1));
      }
    }
  }

  // The next row of level 4 to be made is `row`, a multiple of its group.
  void start(int64_t object, int64_t row) {
    logits = params.logits + object * params.logit_height * params.logit_width;
    for (int64_t& held : expanded_rows) held = -1;
    for (int l = 4; l >= 0; --l) {
      levels[l].next = row;
      row = row > 0 ? 2 * row - 1 : 0;
    }
  }

  // Make the rows of a level before `until`.
  void produce(int l, int64_t until) {
    Level& level = levels[l];
    while (level.next < until) {
      const int64_t count = smaller(until - level.next, level.group);
      if (l > 0) produce(l - 1, 2 * (level.next + count));
      if (l == 0) mask_row(level.next);
      else if (l == 1) convolve<DotFloat, DotFloat>(l, count);
      else if (l == 2) convolve<DotFloat, Dot>(l, count);
      else convolve<Dot, Dot>(l, count);
      level.next += count;
    }
  }

  const float* expand(int64_t y) {
    float* const out = expanded + y % 2 * levels[0].row_step;
    if (expanded_rows[y % 2] == y) return out;
    expanded_rows[y % 2] = y;
    const float* const row = logits + y * params.logit_width;
    for (int64_t q = 0; q < 16; ++q) {
      float* const run = out + q * levels[0].phase_step;
      for (int64_t j = 0; j < params.width; ++j) {
        const int64_t i = q * params.width + j;
        const float share = right_share[i];
        run[j] = resized() ? (1.0f - share) * row[left[i]] + share * row[right[i]] : row[left[i]];
      }
    }
    return out;
  }

  // 20 sigmoid(x) - 10 = 10 (1 - e) / (1 + e) with the sign of x, e = exp(-|x|)
  static Vec scaled_sigmoid(Vec x) {
    const Vec e = exp2_of((x < 0.0f ? x : -x) * kLog2E);
    const Vec size = 10.0f * (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -size : size;
  }

  void mask_row(int64_t y) {
    const Level& level = levels[0];
    float share = 0;  // of the row below
    const int64_t above = source_of(y, params.logit_height, 16 * params.height, &share);
    const int64_t below = above + (above < params.logit_height - 1);
    const float* const a = expand(above);
    const float* const b = resized() ? expand(below) : a;
    float* const out = level.data + y % level.ring * level.row_step;
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < params.width; j += kLanes) {
        const int64_t i = q * level.phase_step + j;
        const Vec x = resized() ? (1.0f - share) * load(a + i) + share * load(b + i) : load(a + i);
        const Vec sharp = x > 0.0f ? fill(10.0f) : fill(-10.0f);
        store(out + i, params.binarize ? sharp : scaled_sigmoid(x));
      }
    }
  }

  // patches[place, channel][row, phase, j] of the next `count` rows of level l
  void patch(int l, int64_t count) {
    const Level &to = levels[l], &from = levels[l - 1];
    const int64_t units = from.channels / depth_of(l - 1), stride = stride_of(l);
    float* row = patches;
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t u = 0; u < units; ++u) {
        float* at = row;
        for (int64_t g = 0; g < count; ++g) {
          const int64_t y = 2 * (to.next + g) + tap / 3 - 1;
          const int64_t held = y < 0 ? 0 : y % from.ring * from.row_step;
          const float* const source = from.data + held + u * from.channels_step;
          for (int64_t q = 0; q < to.phases; ++q) {
            const int64_t x = 2 * q + tap % 3 - 1;
            // phase -1 is the last one, one place to the left
            const int64_t phase =
                x < 0 ? (from.phases - 1) * from.phase_step - 1 : x * from.phase_step;
            const float* const run = source + phase;
            for (int64_t j = 0; j < params.width; j += kLanes) {
              store(at + j, y < 0 ? Vec{} : load(run + j));
            }
            at += params.width;
          }
        }
        row += stride;
      }
    }
  }

  // The next `count` rows of level l: products by `By`, stored for `To`.
  template <class By, class To>
  void convolve(int l, int64_t count) {
    typedef typename By::Unit Operand;
    const Level& level = levels[l];
    const int64_t stride = stride_of(l), steps = steps_of(l);
    const int64_t columns = round_up(count * level.phases * params.width, kColumns);
    const Left<Operand> weight{static_cast<const Operand*>(weights[l - 1]), steps, 1};
    patch(l, count);
    multiply<By>(weight, reinterpret_cast<const Operand*>(patches), stride, product, stride,
                 level.channels, columns, steps, false);
    for (int64_t g = 0; g < count; ++g) {
      for (int64_t q = 0; q < level.phases; ++q) {
        const float* const run = product + (g * level.phases + q) * params.width;
        norm_and_gelu<To>(l, level.next + g, q, run);
      }
    }
  }

  // Bias, norm and GELU of one run, to where its level lies.
  template <class To>
  void norm_and_gelu(int l, int64_t y, int64_t phase, const float* in) const {
    typedef typename To::Unit Stored;
    const Level& to = levels[l];
    const MaskConvolutionWeights& convolution = params.weights.convolutions[l - 1];
    const Norm& norm = convolution.norm;
    const int64_t channels = convolution.channels, stride = stride_of(l);
    float* const out = to.data + y % to.ring * to.row_step + phase * to.phase_step;
    for (int64_t j = 0; j < params.width; j += kLanes) {
      const auto value = [&](int64_t r) { return load(in + r * stride + j) + convolution.bias[r]; };
      Vec mean = Vec{}, square = Vec{};
      for (int64_t r = 0; r < channels; ++r) mean = mean + value(r);
      mean = mean / static_cast<float>(channels);
      for (int64_t r = 0; r < channels; ++r) {
        square = square + (value(r) - mean) * (value(r) - mean);
      }
      const Vec variance = square / static_cast<float>(channels) + params.epsilon;
      const Vec rstd = 1.0f / sqrt_of(variance);
      for (int64_t r = 0; r < channels; r += To::kDepth) {
        Vec values[To::kDepth];
        for (int d = 0; d < To::kDepth; ++d) {
          const Vec centred = value(r + d) - mean;
          values[d] = GeluOf<To>::of(centred * rstd * norm.weight[r + d] + norm.bias[r + d]);
        }
        To::put(values, reinterpret_cast<Stored*>(out) + r / To::kDepth * to.channels_step + j);
      }
    }
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
