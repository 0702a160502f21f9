// The Hiera block's weights as matrix products read them, and its scratch memory. Like the rest of
// a kernel this is in an anonymous namespace, because other kernels have structs of the same names.
#pragma once

#include "csrc/cpu/attend.h"
#include "csrc/hiera_block.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  const Unit *qkv, *proj, *fc1, *fc2, *shortcut;
  const Unit* pad_key;  // [dim_out / kDepth]: key of a token outside the grid, which is the bias

  static Matrices of(const HieraBlockWeights& weights, WeightCopies<Dot>& copies) {
    const int64_t dim = weights.dim, dim_out = weights.dim_out, hidden = weights.hidden;
    Matrices matrices{};
    matrices.qkv = copies.prepare(weights.qkv.weight, 3 * dim_out * dim);
    matrices.proj = copies.prepare(weights.proj.weight, dim_out * dim_out);
    matrices.fc1 = copies.prepare(weights.fc1.weight, hidden * dim_out);
    matrices.fc2 = copies.prepare(weights.fc2.weight, hidden * dim_out);
    matrices.shortcut = copies.prepare(weights.shortcut.weight, dim_out * dim);
    return matrices;
  }
};

// One thread's tile of tokens. Arrays are [channels][stride] floats or [channels / kDepth][stride]
// units.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  int64_t stride;      // of the tile before pooling
  int64_t out_stride;  // of the tile after pooling
  float *x, *y;  // residual stream before and after the attention; the same memory without pooling
  float* product;   // output of a matrix product, not yet packed
  Unit* normed;     // output of a norm
  Unit *q, *k, *v;  // values: [channels][stride / kDepth]
  Unit* attention_out;
  Softmax softmax;

  // the MLP reuses the memory of queries and keys
  Unit* hidden() const { return q; }
  float* mlp_sum() const { return reinterpret_cast<float*>(k); }

  static int64_t widest(const HieraBlockParams& params) {
    return larger(params.weights.dim, params.weights.dim_out);
  }

  static Tile allocate(Arena& arena, const HieraBlockParams& params, int64_t columns,
                       int64_t out_columns) {
    // with padding for vectors that start at the last columns of a window
    const int64_t count = widest(params) * row_stride(columns) + kBlock;
    float* const x = arena.allocate<float>(count);
    float* const after_attention = arena.allocate<float>(count);
    float* const product = arena.allocate<float>(count);
    Unit* const normed = arena.allocate<Unit>(count);
    Unit* const q = arena.allocate<Unit>(count);
    Unit* const k = arena.allocate<Unit>(count);
    Unit* const v = arena.allocate<Unit>(count);
    Unit* const attention_out = arena.allocate<Unit>(count);
    const Softmax softmax = Softmax::allocate(arena, params.weights.dim_out / params.heads);
    return {row_stride(columns),
            row_stride(out_columns),
            x,
            params.pool ? after_attention : x,
            product,
            normed,
            q,
            k,
            v,
            attention_out,
            softmax};
  }
};

// Queries, keys and values of a whole image, for global attention, in blocks of 64 tokens: queries
// and keys [blocks][dim_out / kDepth][64] units, values [blocks][dim_out][64 / kDepth].
template <class Dot>
struct WholeImage {
  typename Dot::Unit *q, *k, *v;
  int64_t pitch;  // units of a block
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
