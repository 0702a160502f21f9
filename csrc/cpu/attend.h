// Softmax attention of up to 64 queries to keys in blocks of up to 64. Only the scores of one block
// exist at a time. Scores are stored as [keys][queries], so that the maximum and sum of each
// softmax run down a column and each vector lane holds one query.
#pragma once

#include "csrc/cpu/tile.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

constexpr int64_t kBlock = 64;  // keys of a block and maximum queries of a tile: 16 KB of scores
constexpr int64_t kStride = kBlock + 16;  // row stride of a tile of 64 columns

// Keys and values of one head. Unit s of key j is k[j / 64 * k_block + s * k_stride + j % 64].
// Channel c of the values of keys j .. j + kDepth - 1 is
// v[j / 64 * v_block + c * v_stride + j % 64 / kDepth].
template <class Dot>
struct Keys {
  const typename Dot::Unit *k, *v;
  int64_t k_stride, k_block, v_stride, v_block;
  int64_t count;  // if it is odd and kDepth is 2, the memory after the last value must be finite
};

// State of the online softmax of a tile: exact for the keys processed so far.
struct Softmax {
  float* scores;       // [64][64] scratch, overwritten by the probabilities
  float* accumulator;  // [value channels][64]: weighted values, not yet divided by running_sum
  float* running_max;  // [64] of the scores
  float* running_sum;  // [64] of the probabilities
  // Size of the state without the scores.
  static int64_t state_floats(int64_t value_channels) { return kBlock * (value_channels + 2); }
  Softmax(float* block_scores, float* state, int64_t value_channels)
      : scores(block_scores),
        accumulator(state),
        running_max(accumulator + value_channels * kBlock),
        running_sum(running_max + kBlock) {}
  static Softmax allocate(Arena& arena, int64_t value_channels) {
    float* const scores = arena.allocate<float>(kBlock * kBlock);
    float* const state = arena.allocate<float>(state_floats(value_channels));
    return {scores, state, value_channels};
  }
};

// Replaces the scores of `count` keys by units of probabilities 2^((score - maximum) * scale),
// updates running_max and running_sum, and rescales the accumulator to the new maxima. The maximum
// is subtracted before anything is rounded, because scores can be large. `first`: these are the
// first keys, and the previous state is ignored.
template <class Dot>
void update_online_softmax(const Softmax& state, int64_t count, int64_t columns,
                           int64_t value_channels, float scale, bool first) {
  typename Dot::Unit* const units = reinterpret_cast<typename Dot::Unit*>(state.scores);
  for (int64_t i = 0; i < columns; i += kLanes) {
    float* const scores = state.scores + i;
    Vec maximum = load(scores);
    for (int64_t j = 1; j < count; ++j) maximum = larger(load(scores + j * kBlock), maximum);
    Vec sum_before = Vec{}, sum = Vec{};
    if (!first) {
      const Vec before = load(state.running_max + i);
      maximum = larger(before, maximum);
      const Vec rescale = exp2_of((before - maximum) * scale);
      sum_before = load(state.running_sum + i) * rescale;
      for (int64_t c = 0; c < value_channels; ++c) {
        float* const row = state.accumulator + c * kBlock + i;
        store(row, load(row) * rescale);
      }
    }
    store(state.running_max + i, maximum);
    for (int64_t j = 0; j < count; j += Dot::kDepth) {
      Vec values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) {
        values[d] =
            j + d < count ? Dot::exp2((load(scores + (j + d) * kBlock) - maximum) * scale) : Vec{};
        sum = sum + values[d];
      }
      Dot::store_rows(values, units + j / Dot::kDepth * kBlock + i);
    }
    store(state.running_sum + i, sum_before + sum);
  }
}

// Initializes the state with `count` equal keys, computed as one: the running maximum is their
// score and the running sum is `count`. key: [steps] units; value: [value_channels].
template <class Dot>
void start_with_repeated_key(const typename Dot::Unit* key, const float* value, int64_t count,
                             const typename Dot::Unit* q, int64_t q_stride, int64_t columns,
                             int64_t steps, int64_t value_channels, const Softmax& state) {
  multiply<Dot>({key, 0, 1}, q, q_stride, state.running_max, kBlock, 1, columns, steps, false);
  const float weight = static_cast<float>(count);
  for (int64_t i = 0; i < columns; i += kLanes) {
    store(state.running_sum + i, fill(weight));
    for (int64_t c = 0; c < value_channels; ++c) {
      store(state.accumulator + c * kBlock + i, fill(weight * value[c]));
    }
  }
}

// Attends to all of `keys`. q: [steps][q_stride] units, of which `columns` are used (a multiple of
// 16, at most 64). `reset`: ignore the previous state instead of continuing from it.
template <class Dot>
void attend(const typename Dot::Unit* q, int64_t q_stride, int64_t columns, int64_t steps,
            const Keys<Dot>& keys, int64_t value_channels, float scale, bool reset,
            const Softmax& state) {
  typedef typename Dot::Unit Unit;
  for (int64_t j = 0; j < keys.count; j += kBlock) {
    const int64_t count = keys.count - j < kBlock ? keys.count - j : kBlock;
    const bool first = reset && j == 0;
    const Left<Unit> k{keys.k + j / kBlock * keys.k_block, 1, keys.k_stride};
    multiply<Dot>(k, q, q_stride, state.scores, kBlock, count, columns, steps, false);
    update_online_softmax<Dot>(state, count, columns, value_channels, scale, first);
    const Left<Unit> v{keys.v + j / kBlock * keys.v_block, keys.v_stride, 1};
    const int64_t depth = ceil_div(count, Dot::kDepth);
    multiply<Dot>(v, reinterpret_cast<const Unit*>(state.scores), kBlock, state.accumulator, kBlock,
                  value_channels, columns, depth, !first);
  }
}

// out[channels / kDepth][count] units = accumulator / running_sum
template <class Dot>
void store_attention(const Softmax& state, int64_t channels, int64_t count, typename Dot::Unit* out,
                     int64_t stride) {
  typename Dot::Unit tail[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec inverse = 1.0f / load(state.running_sum + i);
    for (int64_t c = 0; c < channels; c += Dot::kDepth) {
      Vec values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) {
        values[d] = load(state.accumulator + (c + d) * kBlock + i) * inverse;
      }
      typename Dot::Unit* const row = out + c / Dot::kDepth * stride + i;
      if (i + kLanes <= count) {
        Dot::store_rows(values, row);
      } else {  // the memory after `count` belongs to the next window
        Dot::store_rows(values, tail);
        std::memcpy(row, tail, sizeof(typename Dot::Unit) * (count - i));
      }
    }
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
