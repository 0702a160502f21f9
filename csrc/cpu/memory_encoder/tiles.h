// The memory encoder's weights as matrix products read them, and its scratch memory.
#pragma once

#include "csrc/cpu/tile.h"
#include "csrc/memory_encoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct FuserBlockMatrices {
  const typename Dot::Unit *fc1, *fc2;
};

template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  const void* convolutions[4];  // the first two in float32
  const Unit *mask_proj, *low_proj, *out_proj;
  FuserBlockMatrices<Dot>* blocks;

  // blocks: memory for [num_blocks], or null to compute only the size of the copies.
  static Matrices of(const MemoryEncoderWeights& weights, WeightCopies<Dot>& copies,
                     FuserBlockMatrices<Dot>* blocks) {
    const int64_t dim = weights.dim;
    Matrices matrices{};
    matrices.blocks = blocks;
    int64_t before = 1;
    for (int i = 0; i < 4; ++i) {
      const MaskConvolutionWeights& layer = weights.convolutions[i];
      matrices.convolutions[i] =
          i < 2 ? layer.weight : copies.prepare(layer.weight, 9 * layer.channels * before);
      before = layer.channels;
    }
    matrices.mask_proj = copies.prepare(weights.mask_proj.weight, dim * before);
    matrices.low_proj = copies.prepare(weights.low_proj.weight, dim * dim);
    matrices.out_proj = copies.prepare(weights.out_proj.weight, weights.memory_dim * dim);
    for (int64_t i = 0; i < weights.num_blocks; ++i) {
      const Unit* const fc1 = copies.prepare(weights.blocks[i].fc1.weight, dim * weights.hidden);
      const Unit* const fc2 = copies.prepare(weights.blocks[i].fc2.weight, dim * weights.hidden);
      if (blocks != nullptr) blocks[i] = {fc1, fc2};
    }
    return matrices;
  }
};

// A thread's tile of whole rows of tokens. Arrays are [channels][stride] floats or
// [channels / kDepth][stride] units.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  int64_t stride;
  float* product;  // output of a matrix product or of a depthwise convolution
  float* mlp_sum;  // also other results while `product` is in use
  Unit* normed;    // also level 4 of the mask
  Unit* hidden;    // also the frame's features

  Tile(const MemoryEncoderParams& params, int64_t group, Arena& arena)
      : stride(row_stride(group * params.width + kColumns)) {
    const MemoryEncoderWeights& weights = params.weights;
    const int64_t max_channels =
        larger(weights.convolutions[3].channels, larger(weights.dim, weights.memory_dim));
    const int64_t count = max_channels * stride + kColumns;  // a last run is written past its end,
                                                             // by less than a vector
    product = arena.allocate<float>(count);
    mlp_sum = arena.allocate<float>(count);
    normed = arena.allocate<Unit>(count);
    hidden = arena.allocate<Unit>(count);
  }
};

// Whether the projected features are cached, because several objects read them.
inline bool shares_features(const MemoryEncoderParams& params) {
  return params.images == 1 && params.objects > 1;
}

// Memory that all threads share. maps: [height][dim][pitch], where each row begins after kPad
// zeros; a pass reads one map and writes the other.
struct Shared {
  float* maps[2];
  float* features;  // [tiles][dim][stride]: projected features if the objects share them
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
