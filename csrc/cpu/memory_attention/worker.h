// The operations of a thread on a block of 64 tokens in memory attention.
// docs/kernels/memory_attention.md describes the phases and their arithmetic.
#pragma once

#include "csrc/cpu/memory_attention/tiles.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kEpsilon = 1e-5f;  // of the norms

// The source of keys: a map, or the pointer tokens if `map` is negative.
struct KeySource {
  int64_t map;  // index in `slots`
  bool is_map() const { return map >= 0; }
};

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const MemoryAttentionParams& params;
  const Shared<Dot>& shared;
  Tile<Dot> tile;
  const MemoryAttentionWeights& weights = params.weights;
  int64_t dim = weights.dim, memory_dim = weights.memory_dim;
  int64_t blocks = ceil_div(params.tokens, kBlock);
  int64_t pitch = dim * kBlock;           // floats of a block of tokens
  int64_t units = dim / kDepth * kBlock;  // units of a block of queries, keys or values
  int64_t memory_units = memory_dim * (kBlock / kDepth);  // units of a block of memory values
  int64_t softmax_floats = Softmax::state_floats(memory_dim);
  float scale = softmax_scale(dim);

  int64_t count_of(int64_t block) const { return smaller(kBlock, params.tokens - block * kBlock); }

  // tile.product[rows][64] = weight[rows][in_channels] in.
  void linear(const Unit* weight, int64_t rows, int64_t in_channels, const Unit* in) const {
    multiply<Dot>({weight, in_channels / kDepth, 1}, in, kStride, tile.product, kStride, rows,
                  kBlock, in_channels / kDepth, false);
  }

  // out[dim / kDepth][64] = tile.product + bias.
  void pack_product(const float* bias, Unit* out) const {
    pack_rows<Dot, Identity>(tile.product, kStride, bias, dim, kBlock, out, kBlock);
  }

  // As pack_product, with each pair of channels rotated by the angles of a block's tokens.
  void pack_rotated(const float* bias, int64_t block, Unit* out) const {
    for (int64_t r = 0; r < dim; r += 2) {
      const int64_t angles = (block * dim / 2 + r / 2) * kBlock;
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        const float* const row = tile.product + r * kStride + i;
        const Vec even = load(row) + bias[r], odd = load(row + kStride) + bias[r + 1];
        const Vec c = load(shared.cos + angles + i), s = load(shared.sin + angles + i);
        const Vec rotated[2] = {even * c - odd * s, even * s + odd * c};
        for (int64_t d = 0; d < 2; d += kDepth) {
          Dot::store_rows(rotated + d, out + (r + d) / kDepth * kBlock + i);
        }
      }
    }
  }

  void gather(const void* data, Storage storage, int64_t first, int64_t count, int64_t channels,
              float* out, int64_t stride) const {
    gather_rows(data, storage, channels, count, kBlock, out, stride,
                [&](int64_t i) { return first + i; });
  }

  // tile.normed = norm of x[dim][64].
  void norm(const float* x, int64_t stride, const Norm& layer) const {
    layer_norm<Dot>(x, stride, layer, kEpsilon, dim, kBlock, tile.normed, kStride);
  }

  // out[dim][64] = x[dim][64] + product[dim][kStride] + bias.
  void add_residual(const float* x, const float* product, const float* bias, float* out) const {
    add_rows(x, product, kStride, bias, dim, kBlock, out, kBlock);
  }

  // Loads a block of the frame's tokens to shared.stream, and cosines and sines of its angles.
  void read_tokens(int64_t image, int64_t block) const {
    const int64_t half = dim / 2, count = count_of(block), first = block * kBlock;
    gather(params.x, params.storage, image * params.tokens + first, count, dim,
           shared.stream + block * pitch, kBlock);
    gather(params.cos, Storage::kFloat32, first, count, half, shared.cos + block * half * kBlock,
           kBlock);
    gather(params.sin, Storage::kFloat32, first, count, half, shared.sin + block * half * kBlock,
           kBlock);
  }

  // Queries, keys and values of a block for self-attention.
  void project_self(int64_t layer, const float* x, int64_t block) const {
    const MemoryLayerWeights& l = weights.layers[layer];
    const LayerMatrices<Dot>& m = shared.layers[layer];
    norm(x + block * pitch, kBlock, l.norm1);
    linear(m.self_q, dim, dim, tile.normed);
    pack_rotated(l.self_q.bias, block, shared.q + block * units);
    linear(m.self_k, dim, dim, tile.normed);
    pack_rotated(l.self_k.bias, block, shared.k + block * units);
    linear(m.self_v, dim, dim, tile.normed);
    pack_along<Dot>(tile.product, kStride, l.self_v.bias, dim, kBlock, shared.v + block * units,
                    kBlock / kDepth);
  }

  // Self-attention of a block: out = x + attention.
  void attend_self(int64_t layer, const float* x, int64_t block, float* out) const {
    const MemoryLayerWeights& l = weights.layers[layer];
    const Keys<Dot> keys{shared.k, shared.v, kBlock, units, kBlock / kDepth, units, params.tokens};
    const Softmax softmax{tile.scores, tile.self_softmax, dim};
    attend<Dot>(shared.q + block * units, kBlock, kBlock, dim / kDepth, keys, dim, scale, true,
                softmax);
    store_attention<Dot>(softmax, dim, kBlock, tile.attention_out, kStride);
    linear(shared.layers[layer].self_out, dim, dim, tile.attention_out);
    add_residual(x + block * pitch, tile.product, l.self_out.bias, out + block * pitch);
  }

  // Queries of a block to the memories.
  void project_queries(int64_t layer, const float* x, int64_t block, Unit* q) const {
    const MemoryLayerWeights& l = weights.layers[layer];
    norm(x + block * pitch, kBlock, l.norm2);
    linear(shared.layers[layer].q, dim, dim, tile.normed);
    pack_rotated(l.q.bias, block, q + block * units);
  }

  // Computes keys and values of `count` <= 64 tokens of `source` from `first` on, and stores them
  // as block `out_block` of shared.k and shared.v. Values are the tokens themselves: they are
  // projected after the attention.
  void project_keys(int64_t layer, KeySource source, int64_t first, int64_t count,
                    int64_t out_block) const {
    const MemoryLayerWeights& l = weights.layers[layer];
    const bool is_map = source.is_map();
    const void* const data = is_map ? params.maps[params.slots[source.map]] : params.pointers;
    gather(data, is_map ? params.map_storage : Storage::kFloat32, first, count, memory_dim,
           tile.features, kStride);
    for (int64_t c = 0; c < memory_dim; ++c) {
      Unit* const values = shared.v + out_block * memory_units + c * (kBlock / kDepth);
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        Dot::store_row(load(tile.features + c * kStride + i), values, i);
      }
    }
    if (is_map) {
      add_map_positions(first, count, params.temporal + params.rows[source.map] * memory_dim);
    } else {
      add_pointer_positions(first, count);
    }
    pack_rows<Dot, Identity>(tile.features, kStride, nullptr, memory_dim, kBlock, tile.normed,
                             kStride);
    linear(shared.layers[layer].k, dim, memory_dim, tile.normed);
    if (is_map) {
      pack_rotated(l.k.bias, first / kBlock, shared.k + out_block * units);
    } else {
      pack_product(l.k.bias, shared.k + out_block * units);
    }
  }

  void add_map_positions(int64_t first, int64_t count, const float* temporal) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < memory_dim; ++c) {
        tile.features[c * kStride + i] +=
            params.map_positions[(first + i) * memory_dim + c] + temporal[c];
      }
    }
  }

  void add_pointer_positions(int64_t first, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < memory_dim; ++c) {
        tile.features[c * kStride + i] += params.pointer_positions[(first + i) * memory_dim + c];
      }
    }
  }

  Softmax memory_softmax(int64_t block) const {
    return {tile.scores, shared.softmaxes + block * softmax_floats, memory_dim};
  }

  // Attention of a block of queries to the first num_keys of shared.k.
  void attend_memory(const Unit* q, int64_t block, int64_t num_keys, bool reset) const {
    const Keys<Dot> keys{shared.k,        shared.v,     kBlock,  units,
                         kBlock / kDepth, memory_units, num_keys};
    attend<Dot>(q + block * units, kBlock, kBlock, dim / kDepth, keys, memory_dim, scale, reset,
                memory_softmax(block));
  }

  // Projects the attention of a block to the memories, adds it to x, then applies the MLP.
  void finish_layer(int64_t layer, const float* x, int64_t block, float* out) const {
    const MemoryLayerWeights& l = weights.layers[layer];
    const LayerMatrices<Dot>& m = shared.layers[layer];
    store_attention<Dot>(memory_softmax(block), memory_dim, kBlock, tile.attention_out, kStride);
    linear(m.v, dim, memory_dim, tile.attention_out);
    pack_rows<Dot, Identity>(tile.product, kStride, l.v.bias, dim, kBlock, tile.normed, kStride);
    linear(m.out, dim, dim, tile.normed);
    add_residual(x + block * pitch, tile.product, l.out.bias, tile.features);
    norm(tile.features, kBlock, l.norm3);
    for (int64_t from = 0; from < weights.hidden; from += dim) {
      const int64_t part = smaller(dim, weights.hidden - from);
      linear(m.linear1 + from * (dim / kDepth), part, dim, tile.normed);
      pack_rows<Dot, Relu>(tile.product, kStride, l.linear1.bias + from, part, kBlock, tile.hidden,
                           kStride);
      const Left<Unit> linear2{m.linear2 + from / kDepth, weights.hidden / kDepth, 1};
      multiply<Dot>(linear2, tile.hidden, kStride, tile.mlp_sum, kStride, dim, kBlock,
                    part / kDepth, from > 0);
    }
    add_residual(tile.features, tile.mlp_sum, l.linear2.bias, out + block * pitch);
  }

  // Applies the last norm to a block and stores it as output of an object.
  void write_out(const float* x, int64_t object, int64_t block) const {
    layer_norm<DotFloat>(x + block * pitch, kBlock, weights.norm, kEpsilon, dim, kBlock,
                         tile.product, kStride);
    const int64_t first = object * params.tokens + block * kBlock;
    scatter_rows(tile.product, kStride, dim, count_of(block), params.out, params.storage,
                 [&](int64_t i) { return first + i; });
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
