// Memory attention's weights as products read them, and its scratch memory.
#pragma once

#include "csrc/cpu/attend.h"
#include "csrc/memory_attention.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct LayerMatrices {
  const typename Dot::Unit *self_q, *self_k, *self_v, *self_out, *q, *k, *v, *out, *linear1,
      *linear2;

  static LayerMatrices of(const MemoryAttentionWeights& weights, const MemoryLayerWeights& layer,
                          Copies<Dot>& copies) {
    const int64_t square = weights.dim * weights.dim;
    const int64_t narrow = weights.dim * weights.memory_dim;
    const int64_t wide = weights.dim * weights.hidden;
    LayerMatrices matrices{};
    matrices.self_q = copies.of(layer.self_q.weight, square);
    matrices.self_k = copies.of(layer.self_k.weight, square);
    matrices.self_v = copies.of(layer.self_v.weight, square);
    matrices.self_out = copies.of(layer.self_out.weight, square);
    matrices.q = copies.of(layer.q.weight, square);
    matrices.k = copies.of(layer.k.weight, narrow);
    matrices.v = copies.of(layer.v.weight, narrow);
    matrices.out = copies.of(layer.out.weight, square);
    matrices.linear1 = copies.of(layer.linear1.weight, wide);
    matrices.linear2 = copies.of(layer.linear2.weight, wide);
    return matrices;
  }
};

// What all threads share. Tokens lie in blocks of 64 columns: [blocks][rows][64] floats or units.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  const LayerMatrices<Dot>* layers;
  float *cos, *sin;  // [blocks][dim / 2][64]
  // residual streams: a frame's after its first self-attention; an object's; an object's after
  // self-attention
  float *frame, *stream, *after_self;
  Unit* frame_q;     // a frame's queries to the memories in the first layer
  Unit* q;           // a layer's queries
  Unit *k, *v;       // keys and values of the tokens, or of a window of memories
  float* softmaxes;  // [blocks] states without scores
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float* features;  // of memories; then the residual stream after the attention to them
  float* product;   // of a matrix, not yet packed
  float* mlp_sum;
  Unit *normed, *attended, *hidden;
  float* scores;        // [64][64]
  float* self_softmax;  // state of the attention of tokens to themselves, without scores

  static Tile take(Arena& arena, int64_t dim) {
    Tile tile{};
    tile.features = arena.take<float>(dim * kStride);
    tile.product = arena.take<float>(dim * kStride);
    tile.mlp_sum = arena.take<float>(dim * kStride);
    tile.normed = arena.take<Unit>(dim * kStride);
    tile.attended = arena.take<Unit>(dim * kStride);
    tile.hidden = arena.take<Unit>(dim * kStride);
    tile.scores = arena.take<float>(kBlock * kBlock);
    tile.self_softmax = arena.take<float>(Softmax::floats(dim));
    return tile;
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
