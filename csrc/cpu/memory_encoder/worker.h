// The operations of a thread on a tile of whole rows of tokens in the memory encoder.
// docs/kernels/memory_encoder.md describes the passes and their arithmetic.
#pragma once

#include "csrc/cpu/memory_encoder/mask_rows.h"
#include "csrc/cpu/memory_encoder/tiles.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Layout of tokens in tiles and maps.
struct Layout {
  static constexpr int64_t kPad = 16;  // zeros before a row of a map
  int64_t height, width, dim;
  int64_t group;  // rows of a tile
  int64_t tiles = ceil_div(height, group);
  int64_t pitch = kPad + round_up(width, 16);
  int64_t row_step = dim * pitch;

  int64_t map_floats() const { return height * row_step + 4 * kPad; }
  int64_t rows_of(int64_t tile) const { return smaller(height - tile * group, group); }
  int64_t columns_of(int64_t tile) const { return round_up(rows_of(tile) * width, kColumns); }
};

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth, kPad = Layout::kPad;
  const MemoryEncoderParams& params;
  const Matrices<Dot>& matrices;
  const Shared& shared;
  const Layout& layout;
  Tile<Dot> tile;
  MaskRows<Dot> mask;
  const MemoryEncoderWeights& weights = params.weights;
  int64_t dim = weights.dim, width = layout.width, stride = tile.stride;

  // out[rows][columns] floats = weight[rows][in_channels] in.
  void linear(const Unit* weight, int64_t rows, int64_t in_channels, const Unit* in, float* out,
              int64_t columns) const {
    multiply<Dot>({weight, in_channels / kDepth, 1}, in, stride, out, stride, rows, columns,
                  in_channels / kDepth, false);
  }

  // Zeros the border of a row of a map; for the last row also the end of the map.
  void clear_borders(int64_t y, float* map) const {
    for (int64_t c = 0; c < dim; ++c) {
      float* const row = map + y * layout.row_step + c * layout.pitch;
      for (int64_t i = 0; i < kPad; ++i) row[i] = 0;
      for (int64_t i = kPad + width; i < layout.pitch; ++i) row[i] = 0;
    }
    if (y < params.height - 1) return;
    for (int64_t i = 0; i < 4 * kPad; ++i) map[params.height * layout.row_step + i] = 0;
  }

  // out[word][i] = in[i][word], 16 rows at a time: more rows of a length that is a power of two
  // would map to few cache sets.
  template <class Word>
  static void transpose_words(const Word* in, int64_t words, int64_t count, Word* out,
                              int64_t stride) {
    for (int64_t first = 0; first < count; first += 16) {
      const int64_t end = smaller(first + 16, count);
      for (int64_t w = 0; w < words; ++w) {
        for (int64_t i = first; i < end; ++i) out[w * stride + i] = in[i * words + w];
      }
    }
  }

  // Projects the frame's features of a tile.
  void project_low(int64_t image, int64_t t, float* out) const {
    const int64_t first = image * params.height * width + t * layout.group * width;
    const int64_t count = layout.rows_of(t) * width;
    if (params.storage == WeightCopies<Dot>::kStorage) {
      // the channels of a token are already packed as units
      const int64_t words = dim / kDepth;
      transpose_words(static_cast<const Unit*>(params.low) + first * words, words, count,
                      tile.hidden, stride);
    } else {
      float* const low = tile.mlp_sum;
      if (params.storage == Storage::kFloat32) {
        transpose_words(static_cast<const float*>(params.low) + first * dim, dim, count, low,
                        stride);
      } else {
        gather_rows(params.low, params.storage, dim, count, count, low, stride,
                    [&](int64_t i) { return first + i; });
      }
      pack_rows<Dot, Identity>(low, stride, nullptr, dim, layout.columns_of(t), tile.hidden,
                               stride);
    }
    linear(matrices.low_proj, dim, dim, tile.hidden, out, layout.columns_of(t));
  }

  // Stores the projected mask of a tile plus the projected features in the first map.
  void merge_mask_and_features(int64_t object, int64_t t) {
    const int64_t y = t * layout.group, rows = layout.rows_of(t);
    float* const features =
        shares_features(params) ? shared.features + t * dim * stride : tile.mlp_sum;
    if (!shares_features(params) || object == 0) {
      project_low(params.images > 1 ? object : 0, t, features);
    }
    mask.produce(4, y + rows);
    linear(matrices.mask_proj, dim, weights.convolutions[3].channels, tile.normed, tile.product,
           layout.columns_of(t));
    for (int64_t c = 0; c < dim; ++c) {
      const float bias = weights.mask_proj.bias[c] + weights.low_proj.bias[c];
      for (int64_t g = 0; g < rows; ++g) {
        const int64_t from = c * stride + g * width;
        float* const to = shared.maps[0] + (y + g) * layout.row_step + c * layout.pitch + kPad;
        for (int64_t i = 0; i < width; ++i) {
          to[i] = tile.product[from + i] + features[from + i] + bias;
        }
      }
    }
  }

  // Depthwise convolution of V vectors of R rows of one channel. Each vector of the map is loaded
  // once for all rows that need it.
  template <int R, int V>
  void depthwise_tile(const float* in, int64_t y, const float* weight, float bias,
                      float* out) const {
    Vec sums[R][V];
    for (int k = 0; k < R; ++k) {
      for (int v = 0; v < V; ++v) sums[k][v] = fill(bias);
    }
#pragma GCC unroll 8
    for (int r = -3; r < R + 3; ++r) {
      if (y + r < 0 || y + r >= params.height) continue;
#pragma GCC unroll 7
      for (int dx = 0; dx < 7; ++dx) {
        Vec x[V];
        for (int v = 0; v < V; ++v) {
          x[v] = load(in + (y + r) * layout.row_step + dx - 3 + v * kLanes);
        }
        for (int k = 0; k < R; ++k) {
          const int dy = r + 3 - k;
          if (dy < 0 || dy > 6) continue;
          const Vec tap = fill(weight[dy * 7 + dx]);
          for (int v = 0; v < V; ++v) sums[k][v] = sums[k][v] + x[v] * tap;
        }
      }
    }
    for (int k = 0; k < R; ++k) {
      for (int v = 0; v < V; ++v) store(out + k * width + v * kLanes, sums[k][v]);
    }
  }

  template <int R>
  void depthwise_rows(const float* in, int64_t y, const float* weight, float bias,
                      float* out) const {
    int64_t i = 0;
    for (; i + kTileVectors * kLanes <= width; i += kTileVectors * kLanes) {
      depthwise_tile<R, kTileVectors>(in + i, y, weight, bias, out + i);
    }
    for (; i < width; i += kLanes) depthwise_tile<R, 1>(in + i, y, weight, bias, out + i);
  }

  void depthwise(const DepthwiseWeights& layer, const float* map, int64_t t) const {
    const int64_t rows = layout.rows_of(t), y = t * layout.group;
    // two rows at a time only if rows are whole vectors: a vector beyond the end of one row would
    // overwrite the other
    const bool two_rows = width % kLanes == 0;
    for (int64_t c = 0; c < dim; ++c) {
      const float* const in = map + c * layout.pitch + kPad;
      const float* const weight = layer.weight + c * 49;
      float* const out = tile.product + c * stride;
      int64_t g = 0;
      for (; two_rows && g + 2 <= rows; g += 2) {
        depthwise_rows<2>(in, y + g, weight, layer.bias[c], out + g * width);
      }
      for (; g < rows; ++g) {
        depthwise_rows<1>(in, y + g, weight, layer.bias[c], out + g * width);
      }
    }
  }

  // ConvNeXt block b of a tile, from maps[b % 2] to the other map, or to the output for the last
  // block.
  void fuse(int64_t object, int64_t b, int64_t t) const {
    const FuserBlockWeights& block = weights.blocks[b];
    const int64_t columns = layout.columns_of(t), hidden = weights.hidden;
    depthwise(block.depthwise, shared.maps[b % 2], t);
    layer_norm<Dot>(tile.product, stride, block.norm, params.epsilon, dim, columns, tile.normed,
                    stride);
    for (int64_t from = 0; from < hidden; from += dim) {
      const int64_t part = smaller(hidden - from, dim);
      linear(matrices.blocks[b].fc1 + from * (dim / kDepth), part, dim, tile.normed, tile.product,
             columns);
      pack_rows<Dot, GeluOf<Dot>>(tile.product, stride, block.fc1.bias + from, part, columns,
                                  tile.hidden, stride);
      const Left<Unit> fc2{matrices.blocks[b].fc2 + from / kDepth, hidden / kDepth, 1};
      multiply<Dot>(fc2, tile.hidden, stride, tile.mlp_sum, stride, dim, columns, part / kDepth,
                    from > 0);
    }
    const bool last = b == weights.num_blocks - 1;
    add_residual(block, shared.maps[b % 2], t, last ? nullptr : shared.maps[(b + 1) % 2]);
    if (last) write_out(object, t);
  }

  // x + gamma * (mlp_sum + bias), stored in next_map or, if that is null, in tile.product.
  void add_residual(const FuserBlockWeights& block, const float* map, int64_t t,
                    float* next_map) const {
    const int64_t y = t * layout.group;
    for (int64_t c = 0; c < dim; ++c) {
      const float gamma = block.gamma[c], bias = block.fc2.bias[c];
      for (int64_t g = 0; g < layout.rows_of(t); ++g) {
        const int64_t in_map = (y + g) * layout.row_step + c * layout.pitch + kPad;
        const int64_t in_tile = c * stride + g * width;
        const float* const x = map + in_map;
        const float* const inner = tile.mlp_sum + in_tile;
        float* const to = next_map == nullptr ? tile.product + in_tile : next_map + in_map;
        for (int64_t i = 0; i < width; ++i) to[i] = x[i] + gamma * (inner[i] + bias);
      }
    }
  }

  // Projects tile.product and stores it as output.
  void write_out(int64_t object, int64_t t) const {
    const int64_t first = (object * params.height + t * layout.group) * width;
    const int64_t columns = layout.columns_of(t), memory_dim = weights.memory_dim;
    pack_rows<Dot, Identity>(tile.product, stride, nullptr, dim, columns, tile.normed, stride);
    linear(matrices.out_proj, memory_dim, dim, tile.normed, tile.mlp_sum, columns);
    for (int64_t i = 0; i < layout.rows_of(t) * width; ++i) {
      for (int64_t c = 0; c < memory_dim; ++c) {
        write(params.out, params.out_storage, (first + i) * memory_dim + c,
              tile.mlp_sum[c * stride + i] + weights.out_proj.bias[c]);
      }
    }
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
