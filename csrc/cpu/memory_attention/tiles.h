// Memory attention's weights as matrix products read them, and its scratch memory.
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
                          WeightCopies<Dot>& copies) {
    const int64_t square_size = weights.dim * weights.dim;
    const int64_t memory_size = weights.dim * weights.memory_dim;
    const int64_t hidden_size = weights.dim * weights.hidden;
    LayerMatrices matrices{};
    matrices.self_q = copies.prepare(layer.self_q.weight, square_size);
    matrices.self_k = copies.prepare(layer.self_k.weight, square_size);
    matrices.self_v = copies.prepare(layer.self_v.weight, square_size);
    matrices.self_out = copies.prepare(layer.self_out.weight, square_size);
    matrices.q = copies.prepare(layer.q.weight, square_size);
    matrices.k = copies.prepare(layer.k.weight, memory_size);
    matrices.v = copies.prepare(layer.v.weight, memory_size);
    matrices.out = copies.prepare(layer.out.weight, square_size);
    matrices.linear1 = copies.prepare(layer.linear1.weight, hidden_size);
    matrices.linear2 = copies.prepare(layer.linear2.weight, hidden_size);
    return matrices;
  }
};

// Memory that all threads share. Tokens are stored in blocks of 64 columns: [blocks][rows][64]
// floats or units.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  const LayerMatrices<Dot>* layers;
  float *cos, *sin;  // [blocks][dim / 2][64]
  // residual streams: of the frame after the first self-attention, of the current object, and of
  // the current object after self-attention
  float *frame, *stream, *after_self;
  Unit* frame_q;     // queries of the frame to the memories in the first layer
  Unit* q;           // queries of a layer
  Unit *k, *v;       // keys and values of the tokens, or of a range of memory tokens
  float* softmaxes;  // [blocks] softmax states without scores
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float* features;  // of memories; later the residual stream after the attention to them
  float* product;   // output of a matrix product, not yet packed
  float* mlp_sum;
  Unit *normed, *attention_out, *hidden;
  float* scores;        // [64][64]
  float* self_softmax;  // softmax state of self-attention, without scores

  static Tile allocate(Arena& arena, int64_t dim) {
    Tile tile{};
    tile.features = arena.allocate<float>(dim * kStride);
    tile.product = arena.allocate<float>(dim * kStride);
    tile.mlp_sum = arena.allocate<float>(dim * kStride);
    tile.normed = arena.allocate<Unit>(dim * kStride);
    tile.attention_out = arena.allocate<Unit>(dim * kStride);
    tile.hidden = arena.allocate<Unit>(dim * kStride);
    tile.scores = arena.allocate<float>(kBlock * kBlock);
    tile.self_softmax = arena.allocate<float>(Softmax::state_floats(dim));
    return tile;
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
