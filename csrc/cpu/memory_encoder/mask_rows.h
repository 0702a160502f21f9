// The mask branch of the memory encoder: low-resolution logits are resized and go through four
// convolutions of stride 2, a few rows at a time. Level 0 is the resized mask of 16 h x 16 w
// pixels; level 4 has h x w pixels, one for each token. A row of level l is computed when a row of
// level l + 1 needs it, and a ring buffer keeps only the rows that may still be needed, so that the
// large levels never exist as a whole.
//
// A row is stored in phases: with P = 16 >> l phases, phase q is a run of the w pixels q, P + q,
// 2 P + q, ... A tap of a convolution of stride 2 reads pixel 2 x + k of the level below. For all
// pixels x of one phase these pixels are one phase of the level below, possibly shifted by one
// pixel to the left. So the rows of a patch matrix are copies of contiguous runs instead of strided
// gathers.
#pragma once

#include "csrc/cpu/gelu.h"
#include "csrc/memory_encoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct MaskRows {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kPad = 16;  // zeros before a run; the last one is left of the image
  static constexpr int64_t kMinColumns = 128;  // of a product: shorter rows are computed in groups

  struct Level {
    int64_t channels, phases;
    int64_t group;          // rows computed at once
    int64_t ring;           // rows in the ring buffer
    int64_t row_step;       // distance of rows, in elements
    int64_t channels_step;  // distance of units of channels
    int64_t phase_step;     // distance of phases
    float* data;
    int64_t next;  // first row that is not computed yet
  };

  const MemoryEncoderParams& params;
  const void* const* weights;  // [4] as matrix products read them
  Level levels[5] = {};
  int32_t *left, *right;   // [phase][w] of level 0: columns of the logits left and right of a pixel
  float* right_weight;     // [phase][w]: weight of the logit to the right
  float* expanded_logits;  // [2][phases of level 0]: rows of logits, resized horizontally; row y at
                           // y % 2
  int64_t expanded_rows[2] = {-1, -1};  // row numbers in expanded_logits
  float *patches, *product;
  const float* logits = nullptr;  // of the current object

  // Channels of one element of a level.
  static constexpr int64_t depth_of(int level) { return level < 2 ? 1 : Dot::kDepth; }
  int64_t pitch() const { return kPad + round_up(params.width, 16); }
  int64_t columns_of(int l) const { return levels[l].group * levels[l].phases * params.width; }
  // the last run of a row may be written beyond its end, by less than a vector
  int64_t stride_of(int l) const { return row_stride(columns_of(l) + kColumns); }
  int64_t steps_of(int l) const { return 9 * levels[l - 1].channels / depth_of(l - 1); }

  // Allocates memory in `arena`. Level 4 is stored in `out`: [channels / kDepth][out_stride] units,
  // `group` rows side by side.
  MaskRows(const MemoryEncoderParams& call, const void* const* matrices, int64_t group, float* out,
           int64_t out_stride, Arena& arena)
      : params(call), weights(matrices) {
    const int64_t width = params.width;
    levels[4] = {channels_of(4), 1, group, group, width, out_stride, 0, out, 0};
    for (int l = 3; l >= 0; --l) {
      const int64_t phases = 16 >> l, row = phases * width;
      const int64_t rows_at_once = l > 0 && row < kMinColumns ? kMinColumns / row : 1;
      Level& level = levels[l];
      level.channels = channels_of(l);
      level.phases = phases;
      level.group = rows_at_once;
      level.ring = 2 * levels[l + 1].group + 1;
      level.row_step = level.channels / depth_of(l) * phases * pitch();
      level.channels_step = phases * pitch();
      level.phase_step = pitch();
      level.data = arena.allocate<float>(level.ring * level.row_step) + kPad;
      level.next = 0;
    }
    left = arena.allocate<int32_t>(16 * width);
    right = arena.allocate<int32_t>(16 * width);
    right_weight = arena.allocate<float>(16 * width);
    expanded_logits = arena.allocate<float>(2 * levels[0].row_step) + kPad;
    int64_t most_patches = 0, most_product = 0;
    for (int l = 1; l <= 4; ++l) {
      most_patches = larger(steps_of(l) * stride_of(l), most_patches);
      most_product = larger(levels[l].channels * stride_of(l), most_product);
    }
    patches = arena.allocate<float>(most_patches + kColumns);
    product = arena.allocate<float>(most_product + kColumns);
  }

  int64_t channels_of(int l) const {
    return l > 0 ? params.weights.convolutions[l - 1].channels : 1;
  }

  bool resized() const {
    return params.logit_height != 16 * params.height || params.logit_width != 16 * params.width;
  }

  // The source of pixel i when `source_size` pixels are resized to `size`: returns the source pixel
  // before it; fraction: its distance from that pixel.
  static int64_t source_of(int64_t i, int64_t source_size, int64_t size, float* fraction) {
    const double scaled = (static_cast<double>(i) + 0.5) * static_cast<double>(source_size);
    const double position = scaled / static_cast<double>(size) - 0.5;
    const int64_t floor_index = position > 0 ? static_cast<int64_t>(position) : 0;
    const int64_t before = smaller(floor_index, source_size - 1);
    const bool between = before < source_size - 1 && position > 0;
    *fraction = between ? static_cast<float>(position - static_cast<double>(before)) : 0.0f;
    return before;
  }

  // Computes the horizontal interpolation, once per call.
  void prepare() {
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < params.width; ++j) {
        const int64_t i = q * params.width + j;
        const int64_t before =
            source_of(16 * j + q, params.logit_width, 16 * params.width, right_weight + i);
        left[i] = static_cast<int32_t>(before);
        right[i] = static_cast<int32_t>(before + (before < params.logit_width - 1));
      }
    }
  }

  // Prepares for computing rows of level 4 from `row` on, a multiple of its group.
  void start(int64_t object, int64_t row) {
    logits = params.logits + object * params.logit_height * params.logit_width;
    for (int64_t& y : expanded_rows) y = -1;
    for (int l = 4; l >= 0; --l) {
      levels[l].next = row;
      row = row > 0 ? 2 * row - 1 : 0;
    }
  }

  // Computes the remaining rows of a level up to `until`, exclusive.
  void produce(int l, int64_t until) {
    Level& level = levels[l];
    while (level.next < until) {
      const int64_t count = smaller(until - level.next, level.group);
      if (l > 0) produce(l - 1, 2 * (level.next + count));
      if (l == 0) compute_mask_row(level.next);
      else if (l == 1) convolve<DotFloat, DotFloat>(l, count);
      else if (l == 2) convolve<DotFloat, Dot>(l, count);
      else convolve<Dot, Dot>(l, count);
      level.next += count;
    }
  }

  // Row y of the logits, resized horizontally, in phases.
  const float* expand_logits(int64_t y) {
    float* const out = expanded_logits + y % 2 * levels[0].row_step;
    if (expanded_rows[y % 2] == y) return out;
    expanded_rows[y % 2] = y;
    const float* const row = logits + y * params.logit_width;
    for (int64_t q = 0; q < 16; ++q) {
      float* const run = out + q * levels[0].phase_step;
      for (int64_t j = 0; j < params.width; ++j) {
        const int64_t i = q * params.width + j;
        const float weight = right_weight[i];
        run[j] = resized() ? (1.0f - weight) * row[left[i]] + weight * row[right[i]] : row[left[i]];
      }
    }
    return out;
  }

  // 20 sigmoid(x) - 10 = sign(x) 10 (1 - e) / (1 + e) with e = exp(-|x|).
  static Vec scaled_sigmoid(Vec x) {
    const Vec e = exp2_of((x < 0.0f ? x : -x) * kLog2E);
    const Vec magnitude = 10.0f * (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -magnitude : magnitude;
  }

  // Computes row y of level 0.
  void compute_mask_row(int64_t y) {
    const Level& level = levels[0];
    float below_weight = 0;
    const int64_t above = source_of(y, params.logit_height, 16 * params.height, &below_weight);
    const int64_t below = above + (above < params.logit_height - 1);
    const float* const a = expand_logits(above);
    const float* const b = resized() ? expand_logits(below) : a;
    float* const out = level.data + y % level.ring * level.row_step;
    for (int64_t q = 0; q < 16; ++q) {
      for (int64_t j = 0; j < params.width; j += kLanes) {
        const int64_t i = q * level.phase_step + j;
        const Vec x = resized() ? (1.0f - below_weight) * load(a + i) + below_weight * load(b + i)
                                : load(a + i);
        const Vec binary = x > 0.0f ? fill(10.0f) : fill(-10.0f);
        store(out + i, params.binarize ? binary : scaled_sigmoid(x));
      }
    }
  }

  // patches[position, channel][row, phase, j] for the next `count` rows of level l.
  void build_patches(int l, int64_t count) {
    const Level &to = levels[l], &from = levels[l - 1];
    const int64_t units = from.channels / depth_of(l - 1), stride = stride_of(l);
    float* row = patches;
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t u = 0; u < units; ++u) {
        float* out = row;
        for (int64_t g = 0; g < count; ++g) {
          const int64_t y = 2 * (to.next + g) + tap / 3 - 1;
          const int64_t row_offset = y < 0 ? 0 : y % from.ring * from.row_step;
          const float* const source = from.data + row_offset + u * from.channels_step;
          for (int64_t q = 0; q < to.phases; ++q) {
            const int64_t x = 2 * q + tap % 3 - 1;
            // phase -1 is the last phase, shifted by one pixel to the left
            const int64_t phase =
                x < 0 ? (from.phases - 1) * from.phase_step - 1 : x * from.phase_step;
            const float* const run = source + phase;
            for (int64_t j = 0; j < params.width; j += kLanes) {
              store(out + j, y < 0 ? Vec{} : load(run + j));
            }
            out += params.width;
          }
        }
        row += stride;
      }
    }
  }

  // Computes the next `count` rows of level l with products of `InDot`, and stores them as units
  // of `OutDot`.
  template <class InDot, class OutDot>
  void convolve(int l, int64_t count) {
    typedef typename InDot::Unit Operand;
    const Level& level = levels[l];
    const int64_t stride = stride_of(l), steps = steps_of(l);
    const int64_t columns = round_up(count * level.phases * params.width, kColumns);
    const Left<Operand> weight{static_cast<const Operand*>(weights[l - 1]), steps, 1};
    build_patches(l, count);
    multiply<InDot>(weight, reinterpret_cast<const Operand*>(patches), stride, product, stride,
                    level.channels, columns, steps, false);
    for (int64_t g = 0; g < count; ++g) {
      for (int64_t q = 0; q < level.phases; ++q) {
        const float* const run = product + (g * level.phases + q) * params.width;
        norm_and_gelu<OutDot>(l, level.next + g, q, run);
      }
    }
  }

  // Applies bias, norm and GELU to one run and stores it in its level.
  template <class OutDot>
  void norm_and_gelu(int l, int64_t y, int64_t phase, const float* in) const {
    typedef typename OutDot::Unit OutUnit;
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
      for (int64_t r = 0; r < channels; r += OutDot::kDepth) {
        Vec values[OutDot::kDepth];
        for (int d = 0; d < OutDot::kDepth; ++d) {
          const Vec centred = value(r + d) - mean;
          values[d] = GeluOf<OutDot>::of(centred * rstd * norm.weight[r + d] + norm.bias[r + d]);
        }
        OutDot::store_rows(
            values, reinterpret_cast<OutUnit*>(out) + r / OutDot::kDepth * to.channels_step + j);
      }
    }
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
