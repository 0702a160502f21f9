// The operations of a thread on a tile of tokens of the Hiera block. docs/kernels/hiera_block.md
// describes the tiling and its arithmetic.
#pragma once

#include "csrc/cpu/gelu.h"
#include "csrc/cpu/hiera_block/tiles.h"
#include "csrc/cpu/window.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

enum Part : int64_t { kQueries, kKeys, kValues };  // of the qkv layer's outputs

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const HieraBlockParams& params;
  const Matrices<Dot>& matrices;
  const WholeImage<Dot>& whole_image;
  Tile<Dot> tile;
  const HieraBlockWeights& weights = params.weights;
  int64_t dim = weights.dim, dim_out = weights.dim_out;
  int64_t head_dim = dim_out / params.heads;
  float scale = softmax_scale(head_dim);
  Grid grid{params.height, params.width, params.window, params.pool};

  // out[rows][columns] floats = weight[rows][in_channels] in
  void linear(const Unit* weight, int64_t rows, int64_t in_channels, const Unit* in, int64_t stride,
              int64_t columns, float* out) const {
    multiply<Dot>({weight, in_channels / kDepth, 1}, in, stride, out, stride, rows, columns,
                  in_channels / kDepth, false);
  }

  // Loads the tokens of a window to columns of x.
  void gather(const Window& window, float* x, int64_t stride) const {
    int64_t rows[kBlock];
    for (int64_t from = 0; from < window.tokens(); from += kBlock) {
      const int64_t count = smaller(kBlock, window.tokens() - from);
      window.token_rows(grid, from, count, rows);
      gather_rows(params.x, params.storage, dim, count, count, x + from, stride,
                  [&](int64_t i) { return rows[i]; });
    }
  }

  // Stores columns of y as the result of a window.
  void scatter(const Window& window, const float* y, int64_t stride) const {
    int64_t rows[kBlock];
    for (int64_t from = 0; from < queries_of(window); from += kBlock) {
      const int64_t count = smaller(kBlock, queries_of(window) - from);
      window.result_rows(grid, from, count, rows);
      scatter_rows(y + from, stride, dim_out, count, params.out, params.storage,
                   [&](int64_t i) { return rows[i]; });
    }
  }

  // Zeros columns [from, to).
  void clear(float* x, int64_t stride, int64_t rows, int64_t from, int64_t to) const {
    for (int64_t c = 0; c < rows; ++c) {
      for (int64_t i = from; i < to; ++i) x[c * stride + i] = 0;
    }
  }

  // tile.product = queries, keys or values of the tile, without bias.
  void project(Part part, int64_t columns) const {
    linear(matrices.qkv + part * dim_out * (dim / kDepth), dim_out, dim, tile.normed, tile.stride,
           columns, tile.product);
  }

  const float* bias_of(Part part) const { return weights.qkv.bias + part * dim_out; }

  int64_t queries_of(const Window& window) const {
    return params.pool ? window.tokens() / 4 : window.tokens();
  }

  // Columns of a window in the tile, padded so that the values of the next one start at a whole
  // unit.
  int64_t columns_of(const Window& window) const { return round_up(window.tokens(), kDepth); }
  int64_t out_columns_of(const Window& window) const {
    return params.pool ? window.tokens() / 4 : columns_of(window);
  }

  // Attention of a window. Its tokens begin at `column` of the tile, its queries at `out_column`.
  void attend_window(const Window& window, int64_t column, int64_t out_column) const {
    const int64_t stride = tile.stride, q_stride = tile.out_stride;
    for (int64_t h = 0; h < params.heads; ++h) {
      const int64_t row = h * head_dim / kDepth;
      const Keys<Dot> keys{tile.k + row * stride + column,
                           tile.v + h * head_dim * (stride / kDepth) + column / kDepth,
                           stride,
                           kBlock,
                           stride / kDepth,
                           kBlock / kDepth,
                           window.tokens()};
      for (int64_t i = 0; i < queries_of(window); i += kBlock) {
        const int64_t count = smaller(kBlock, queries_of(window) - i);
        const int64_t columns = round_up(count, kColumns);
        const Unit* const q = tile.q + row * q_stride + out_column + i;
        if (window.padded > 0) {
          start_with_repeated_key<Dot>(matrices.pad_key + row, bias_of(kValues) + h * head_dim,
                                       window.padded, q, q_stride, columns, head_dim / kDepth,
                                       head_dim, tile.softmax);
        }
        attend<Dot>(q, q_stride, columns, head_dim / kDepth, keys, head_dim, scale,
                    window.padded == 0, tile.softmax);
        store_attention<Dot>(tile.softmax, head_dim, count,
                             tile.attention_out + row * q_stride + out_column + i, q_stride);
      }
    }
  }

  // y += proj(attention_out), then y += fc2(gelu(fc1(norm(y)))). The hidden channels are computed
  // in parts of dim_out. Each product is complete before it is added to y.
  void project_and_mlp(int64_t columns) const {
    const int64_t stride = tile.out_stride;
    linear(matrices.proj, dim_out, dim_out, tile.attention_out, stride, columns, tile.product);
    add_rows(tile.y, tile.product, stride, weights.proj.bias, dim_out, columns, tile.y, stride);
    layer_norm<Dot>(tile.y, stride, weights.norm2, params.epsilon, dim_out, columns, tile.normed,
                    stride);
    for (int64_t from = 0; from < weights.hidden; from += dim_out) {
      const int64_t part = smaller(dim_out, weights.hidden - from);
      linear(matrices.fc1 + from * (dim_out / kDepth), part, dim_out, tile.normed, stride, columns,
             tile.product);
      pack_rows<Dot, GeluOf<Dot>>(tile.product, stride, weights.fc1.bias + from, part, columns,
                                  tile.hidden(), stride);
      const Left<Unit> fc2{matrices.fc2 + from / kDepth, weights.hidden / kDepth, 1};
      multiply<Dot>(fc2, tile.hidden(), stride, tile.mlp_sum(), stride, dim_out, columns,
                    part / kDepth, from > 0);
    }
    add_rows(tile.y, tile.mlp_sum(), stride, weights.fc2.bias, dim_out, columns, tile.y, stride);
  }

  // Computes windows first .. end - 1, which are side by side in the tile, from input to output.
  void run_windows(int64_t first, int64_t end) const {
    int64_t used = 0, cells = 0;
    for (int64_t i = first; i < end; ++i) {
      const Window window = window_of(grid, i);
      gather(window, tile.x + used, tile.stride);
      clear(tile.x, tile.stride, dim, used + window.tokens(), used + columns_of(window));
      used += columns_of(window);
      cells += window.tokens() / 4;
    }
    const int64_t columns = round_up(used, kColumns);
    const int64_t out_columns = params.pool ? round_up(cells, kColumns) : columns;
    clear(tile.x, tile.stride, dim, used, columns);
    layer_norm<Dot>(tile.x, tile.stride, weights.norm1, params.epsilon, dim, columns, tile.normed,
                    tile.stride);
    project(kKeys, columns);
    pack_rows<Dot, Identity>(tile.product, tile.stride, bias_of(kKeys), dim_out, columns, tile.k,
                             tile.stride);
    project(kValues, columns);
    pack_along<Dot>(tile.product, tile.stride, bias_of(kValues), dim_out, columns, tile.v,
                    tile.stride / kDepth);
    project(kQueries, columns);
    if (params.pool) {
      pool_queries_and_shortcut(first, end, columns, out_columns);
    } else {
      pack_rows<Dot, Identity>(tile.product, tile.stride, bias_of(kQueries), dim_out, columns,
                               tile.q, tile.stride);
    }
    int64_t column = 0, out_column = 0;
    for (int64_t i = first; i < end; ++i) {
      const Window window = window_of(grid, i);
      attend_window(window, column, out_column);
      column += columns_of(window);
      out_column += out_columns_of(window);
    }
    project_and_mlp(out_columns);
    out_column = 0;
    for (int64_t i = first; i < end; ++i) {
      const Window window = window_of(grid, i);
      scatter(window, tile.y + out_column, tile.out_stride);
      out_column += out_columns_of(window);
    }
  }

  // Max-pools the queries in tile.product to tile.q and the shortcut to tile.y.
  void pool_queries_and_shortcut(int64_t first, int64_t end, int64_t columns,
                                 int64_t out_columns) const {
    pool_windows(first, end, tile.x);  // tile.x is free here
    pack_rows<Dot, Identity>(tile.x, tile.out_stride, bias_of(kQueries), dim_out, out_columns,
                             tile.q, tile.out_stride);
    linear(matrices.shortcut, dim_out, dim, tile.normed, tile.stride, columns, tile.product);
    clear(tile.y, tile.out_stride, dim_out, 0, out_columns);
    pool_windows(first, end, tile.y);
    for (int64_t c = 0; c < dim_out; ++c) {
      float* const row = tile.y + c * tile.out_stride;
      for (int64_t i = 0; i < out_columns; ++i) row[i] += weights.shortcut.bias[c];
    }
  }

  // Max-pools the windows in tile.product.
  void pool_windows(int64_t first, int64_t end, float* out) const {
    int64_t column = 0, out_column = 0;
    for (int64_t i = first; i < end; ++i) {
      const Window window = window_of(grid, i);
      max_pool_cells(tile.product + column, tile.stride, dim_out, window.tokens() / 4,
                     out + out_column, tile.out_stride);
      column += columns_of(window);
      out_column += window.tokens() / 4;
    }
  }

  // Global attention, first pass: computes queries, keys and values of a block of 64 tokens.
  void project_block(int64_t image, int64_t block) const {
    const Window tokens = run_of_tokens(image, block);
    clear(tile.x, tile.stride, dim, tokens.tokens(), kBlock);
    gather(tokens, tile.x, tile.stride);
    layer_norm<Dot>(tile.x, tile.stride, weights.norm1, params.epsilon, dim, kBlock, tile.normed,
                    tile.stride);
    project(kQueries, kBlock);
    pack_rows<Dot, Identity>(tile.product, tile.stride, bias_of(kQueries), dim_out, kBlock,
                             whole_image.q + block * whole_image.pitch, kBlock);
    project(kKeys, kBlock);
    pack_rows<Dot, Identity>(tile.product, tile.stride, bias_of(kKeys), dim_out, kBlock,
                             whole_image.k + block * whole_image.pitch, kBlock);
    project(kValues, kBlock);
    pack_along<Dot>(tile.product, tile.stride, bias_of(kValues), dim_out, kBlock,
                    whole_image.v + block * whole_image.pitch, kBlock / kDepth);
  }

  // Global attention, second pass: attention, residual and MLP of a block of 64 tokens.
  void finish_block(int64_t image, int64_t block) const {
    const Window tokens = run_of_tokens(image, block);
    for (int64_t h = 0; h < params.heads; ++h) {
      const int64_t row = h * head_dim / kDepth * kBlock;
      const Keys<Dot> keys{whole_image.k + row,         whole_image.v + row, kBlock,
                           whole_image.pitch,           kBlock / kDepth,     whole_image.pitch,
                           params.height * params.width};
      attend<Dot>(whole_image.q + block * whole_image.pitch + row, kBlock, kBlock,
                  head_dim / kDepth, keys, head_dim, scale, true, tile.softmax);
      store_attention<Dot>(tile.softmax, head_dim, kBlock,
                           tile.attention_out + h * head_dim / kDepth * tile.stride, tile.stride);
    }
    clear(tile.y, tile.stride, dim, tokens.tokens(), kBlock);
    gather(tokens, tile.y, tile.stride);
    project_and_mlp(kBlock);
    scatter(tokens, tile.y, tile.stride);
  }

  // A block of 64 consecutive tokens of an image, as a window of one row.
  Window run_of_tokens(int64_t image, int64_t block) const {
    const int64_t first = block * kBlock;
    return {image, 0, first, 1, smaller(kBlock, params.height * params.width - first), 0};
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
