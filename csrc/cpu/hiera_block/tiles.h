// The Hiera block's weights as products read them, and its scratch memory. In an anonymous
// namespace, as all of a kernel: other kernels have structs of the same names.
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
  const Unit* pad_key;  // [dim_out / kDepth]: of a token outside the grid, the bias of the keys

  static Matrices of(const HieraBlockWeights& weights, Copies<Dot>& copies) {
    const int64_t dim = weights.dim, dim_out = weights.dim_out, hidden = weights.hidden;
    Matrices matrices{};
    matrices.qkv = copies.of(weights.qkv.weight, 3 * dim_out * dim);
    matrices.proj = copies.of(weights.proj.weight, dim_out * dim_out);
    matrices.fc1 = copies.of(weights.fc1.weight, hidden * dim_out);
    matrices.fc2 = copies.of(weights.fc2.weight, hidden * dim_out);
    matrices.shortcut = copies.of(weights.shortcut.weight, dim_out * dim);
    return matrices;
  }
};

// One thread's tile of tokens: every array is [channels][stride] floats, or [channels / kDepth]
// rows of units.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  int64_t stride;      // of the tile before pooling
  int64_t out_stride;  // of the tile after pooling
  float *x, *y;        // residual stream before and after the attention; the same if not pooled
  float* product;      // of a matrix, not yet packed
  Unit* normed;        // also the input of the MLP
  Unit *q, *k, *v;     // values: [channels][stride / kDepth]
  Unit* attended;
  Softmax softmax;

  // queries and keys are not needed any more when the MLP begins
  Unit* hidden() const { return q; }
  float* mlp_sum() const { return reinterpret_cast<float*>(k); }

  static int64_t widest(const HieraBlockParams& params) {
    return larger(params.weights.dim, params.weights.dim_out);
  }

  static Tile take(Arena& arena, const HieraBlockParams& params, int64_t columns,
                   int64_t out_columns) {
    // with slack for vectors that start at a window's last columns
    const int64_t count = widest(params) * row_stride(columns) + kBlock;
    float* const x = arena.take<float>(count);
    float* const after_attention = arena.take<float>(count);
    float* const product = arena.take<float>(count);
    Unit* const normed = arena.take<Unit>(count);
    Unit* const q = arena.take<Unit>(count);
    Unit* const k = arena.take<Unit>(count);
    Unit* const v = arena.take<Unit>(count);
    Unit* const attended = arena.take<Unit>(count);
    const Softmax softmax = Softmax::take(arena, params.weights.dim_out / params.heads);
    return {row_stride(columns),
            row_stride(out_columns),
            x,
            params.pool ? after_attention : x,
            product,
            normed,
            q,
            k,
            v,
            attended,
            softmax};
  }
};

// Queries, keys and values of a whole image where every token attends to all, in blocks of 64
// tokens: [blocks][dim_out / kDepth][64] units, values [blocks][dim_out][64 / kDepth].
template <class Dot>
struct WholeImage {
  typename Dot::Unit *q, *k, *v;
  int64_t pitch;  // units of a block
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
