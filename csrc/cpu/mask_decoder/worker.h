// The operations of a thread on a block of 64 image tokens in the mask decoder, and on all prompt
// tokens. docs/kernels/mask_decoder.md describes the passes and their arithmetic.
#pragma once

#include "csrc/cpu/gelu.h"
#include "csrc/cpu/mask_decoder/prompt_tokens.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kMapEpsilon = 1e-6f;  // of the norm between the two upscalings

// Keys and values of a block of image tokens, with rows of `stride` units.
template <class Dot>
struct BlockKeys {
  typename Dot::Unit *k, *v;
  int64_t stride;
};

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const MaskDecoderParams& params;
  const Matrices<Dot>& matrices;
  const Shared<Dot>& shared;
  Tile<Dot> tile;
  PromptTokens<Dot> tokens;
  float* mask_weights;  // [num_masks][dim / 8]: hypernetwork outputs
  float* quality;       // [iou_values]
  const MaskDecoderWeights& weights = params.weights;
  int64_t dim = weights.dim, inner = dim / 2, quarter = dim / 4, eighth = dim / 8;
  int64_t head_dim = inner / params.heads;
  int64_t count = params.height * params.width, blocks = ceil_div(count, kBlock);
  int64_t pitch = dim * kBlock;                   // floats of a block of image tokens
  int64_t block_units = inner / kDepth * kBlock;  // units of a block of queries, keys or values
  int64_t partial_stride = head_dim + 2;          // floats of a token's partial attention result
  int64_t num_outputs = params.best ? 1 : weights.num_masks;
  float scale = softmax_scale(head_dim);

  static Worker allocate(Arena& arena, const MaskDecoderParams& params,
                         const Matrices<Dot>& matrices, const Shared<Dot>& shared) {
    const MaskDecoderWeights& weights = params.weights;
    const auto tokens = PromptTokens<Dot>::allocate(arena, params);
    const auto tile = Tile<Dot>::allocate(arena, weights.dim);
    float* const mask_weights = arena.allocate<float>(weights.num_masks * (weights.dim / 8));
    float* const quality = arena.allocate<float>(weights.iou_values);
    return {params, matrices, shared, tile, tokens, mask_weights, quality};
  }

  int64_t count_of(int64_t block) const { return smaller(count - block * kBlock, kBlock); }

  // out[rows][64] = weight[rows][in_channels] in.
  void linear(const Unit* weight, int64_t rows, int64_t in_channels, const Unit* in,
              float* out) const {
    multiply<Dot>({weight, in_channels / kDepth, 1}, in, kStride, out, kStride, rows, kBlock,
                  in_channels / kDepth, false, kShortPartialSteps);
  }

  // Loads row `row(t)` of `data` for each token t of a block.
  template <class Row>
  void gather(const void* data, Storage storage, int64_t channels, int64_t block, float* out,
              Row row) const {
    gather_rows(data, storage, channels, count_of(block), kBlock, out, kBlock,
                [&](int64_t i) { return row(block * kBlock + i); });
  }

  void read_image(int64_t image, int64_t block) const {
    gather(params.image, params.storage, dim, block, shared.image + block * pitch,
           [&](int64_t t) { return image * count + t; });
    gather(params.position, Storage::kFloat32, dim, block, shared.position + block * pitch,
           [](int64_t t) { return t; });
  }

  // Row number of pixel (dy, dx) of token t in a feature map that has side x side pixels for each
  // token.
  int64_t pixel_of(int64_t frame, int64_t t, int64_t side, int64_t dy, int64_t dx) const {
    const int64_t y = frame * side * params.height + t / params.width * side + dy;
    return y * side * params.width + t % params.width * side + dx;
  }

  // Loads pixel `cell` of the 2 x 2 pixels of each token, and pixel `subcell` of the 2 x 2 pixels
  // of high_features in it.
  void gather_mid(int64_t frame, int64_t block, int64_t cell, float* out) const {
    gather(params.mid_features, params.storage, quarter, block, out,
           [&](int64_t t) { return pixel_of(frame, t, 2, cell / 2, cell % 2); });
  }

  void gather_high(int64_t frame, int64_t block, int64_t cell, int64_t subcell, float* out) const {
    const int64_t dy = cell / 2 * 2 + subcell / 2, dx = cell % 2 * 2 + subcell % 2;
    gather(params.high_features, params.storage, eighth, block, out,
           [&](int64_t t) { return pixel_of(frame, t, 4, dy, dx); });
  }

  float* cached_mid(int64_t block, int64_t cell) const {
    return shared.mid_features + (block * 4 + cell) * quarter * kBlock;
  }
  float* cached_high(int64_t block, int64_t cell, int64_t subcell) const {
    return shared.high_features + (block * 16 + cell * 4 + subcell) * eighth * kBlock;
  }

  // Converts a block of mid_features and high_features to the cache.
  void read_frame(int64_t block) const {
    for (int64_t cell = 0; cell < 4; ++cell) {
      gather_mid(0, block, cell, cached_mid(block, cell));
      for (int64_t subcell = 0; subcell < 4; ++subcell) {
        gather_high(0, block, cell, subcell, cached_high(block, cell, subcell));
      }
    }
  }

  // Packs x and x plus the positions of a block.
  void pack(const float* x, int64_t block) const {
    pack_sum<Dot>(x, nullptr, kBlock, 0, dim, kBlock, tile.packed, kStride);
    pack_sum<Dot>(x, shared.position + block * pitch, kBlock, kBlock, dim, kBlock,
                  tile.with_position, kStride);
  }

  Unit* first_queries(int64_t block) const { return shared.q + block * block_units; }
  BlockKeys<Dot> first_keys(int64_t block) const {
    return {shared.k + block * block_units, shared.v + block * block_units, kBlock};
  }

  // Queries of a packed block for image-to-token attention.
  void project_queries(const AttentionLayer<Dot>& layer, Unit* q, int64_t stride) const {
    linear(layer.matrices.q, inner, dim, tile.with_position, tile.product);
    pack_rows<Dot, Identity>(tile.product, kStride, layer.weights.q.bias, inner, kBlock, q, stride);
  }

  // Keys and values of a packed block for token-to-image attention.
  void project_keys(const AttentionLayer<Dot>& layer, const BlockKeys<Dot>& out) const {
    linear(layer.matrices.k, inner, dim, tile.with_position, tile.product);
    pack_rows<Dot, Identity>(tile.product, kStride, layer.weights.k.bias, inner, kBlock, out.k,
                             out.stride);
    linear(layer.matrices.v, inner, dim, tile.packed, tile.product);
    pack_along<Dot>(tile.product, kStride, layer.weights.v.bias, inner, kBlock, out.v,
                    out.stride / kDepth);
  }

  // The projections of a block in the first layer, which do not depend on the object.
  void project_first_layer(int64_t block) const {
    const TwoWayLayerWeights& layer = weights.layers[0];
    const LayerMatrices<Dot>& m = matrices.layers[0];
    pack(shared.image + block * pitch, block);
    project_queries({layer.image_to_token, m.image_to_token}, first_queries(block), kBlock);
    project_keys({layer.token_to_image, m.token_to_image}, first_keys(block));
  }

  int64_t partial_floats() const { return params.heads * tokens.count * partial_stride; }

  // Token-to-image attention to one block. Stores accumulator, running_max and running_sum of each
  // head and token in `partial`.
  void attend_block(const BlockKeys<Dot>& block_keys, int64_t block, float* partial) const {
    float* const out = partial + block * partial_floats();
    const Softmax& state = tile.softmax;
    for (int64_t h = 0; h < params.heads; ++h) {
      const Keys<Dot> keys{block_keys.k + h * head_dim / kDepth * block_keys.stride,
                           block_keys.v + h * head_dim * (block_keys.stride / kDepth),
                           block_keys.stride,
                           0,
                           block_keys.stride / kDepth,
                           0,
                           count_of(block)};
      for (int64_t first = 0; first < tokens.count; first += kBlock) {
        const int64_t rows = smaller(tokens.count - first, kBlock);
        const Unit* const q = tokens.q + h * head_dim / kDepth * tokens.stride + first;
        attend<Dot>(q, tokens.stride, round_up(rows, kColumns), head_dim / kDepth, keys, head_dim,
                    scale, true, state);
        for (int64_t r = 0; r < rows; ++r) {
          float* const to = out + (h * tokens.count + first + r) * partial_stride;
          for (int64_t c = 0; c < head_dim; ++c) to[c] = state.accumulator[c * kBlock + r];
          to[head_dim] = state.running_max[r];
          to[head_dim + 1] = state.running_sum[r];
        }
      }
    }
  }

  // Merges the partial results of all blocks to tokens.product [inner][tokens], always in the order
  // of the blocks, so that the result does not depend on the number of threads.
  void merge_blocks(const float* partial) const {
    for (int64_t h = 0; h < params.heads; ++h) {
      for (int64_t r = 0; r < tokens.columns; ++r) {
        float* const out = tokens.product + h * head_dim * tokens.stride + r;
        if (r < tokens.count) {
          merge_token(partial + (h * tokens.count + r) * partial_stride, out);
        } else {
          for (int64_t c = 0; c < head_dim; ++c) out[c * tokens.stride] = 0;
        }
      }
    }
  }

  // partial: result of one head and token in the first block.
  void merge_token(const float* partial, float* out) const {
    const int64_t step = partial_floats();
    float maximum = -INFINITY, denominator = 0, values[64] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const float other = partial[b * step + head_dim];
      maximum = other > maximum || other != other ? other : maximum;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const float* const block_partial = partial + b * step;
      const float rescale = exp2_of(fill((block_partial[head_dim] - maximum) * scale))[0];
      denominator += rescale * block_partial[head_dim + 1];
      for (int64_t c = 0; c < head_dim; ++c) values[c] += rescale * block_partial[c];
    }
    for (int64_t c = 0; c < head_dim; ++c) out[c * tokens.stride] = values[c] / denominator;
  }

  // Image-to-token attention of a block: out = norm(x + attention).
  void attend_tokens(int64_t layer, const Unit* q, int64_t stride, const float* x,
                     float* out) const {
    const TwoWayLayerWeights& l = weights.layers[layer];
    for (int64_t h = 0; h < params.heads; ++h) {
      const int64_t row = h * head_dim / kDepth;
      attend<Dot>(q + row * stride, stride, kBlock, head_dim / kDepth,
                  tokens.keys_of(tokens.image_k, tokens.image_v, h, head_dim), head_dim, scale,
                  true, tile.softmax);
      store_attention<Dot>(tile.softmax, head_dim, kBlock, tile.attention_out + row * kStride,
                           kStride);
    }
    linear(matrices.layers[layer].image_to_token.out, dim, inner, tile.attention_out, tile.product);
    add_rows(x, tile.product, kStride, l.image_to_token.out.bias, dim, kBlock, out, kBlock);
    layer_norm<DotFloat>(out, kBlock, l.norm4, kTokenEpsilon, dim, kBlock, out, kBlock);
  }

  // Updates a block by image-to-token attention, then computes its keys and values for the next
  // token-to-image attention and the partial result of that attention.
  void update_image_block(int64_t layer, const AttentionLayer<Dot>& next, int64_t block,
                          float* partial) const {
    float* const x = shared.stream + block * pitch;
    if (layer == 0) {
      attend_tokens(layer, first_queries(block), kBlock, shared.image + block * pitch, x);
    } else {
      pack(x, block);
      project_queries({weights.layers[layer].image_to_token, matrices.layers[layer].image_to_token},
                      tile.q, kStride);
      attend_tokens(layer, tile.q, kStride, x, x);
    }
    pack(x, block);
    const BlockKeys<Dot> keys{tile.k, tile.v, kStride};
    project_keys(next, keys);
    attend_block(keys, block, partial);
  }

  // Stores the predicted IoU in `quality` and returns the index of the best mask.
  int64_t predict_iou() const {
    tokens.run_mlp_head(weights.iou, matrices.iou, params.iou_token, weights.iou_hidden,
                        weights.iou_values, quality);
    for (int64_t i = 0; i < weights.iou_values; ++i) quality[i] = 1.0f / (1.0f + expf(-quality[i]));
    const float* const mask_quality = quality + params.first_mask_token - params.iou_token - 1;
    int64_t best = 0;
    for (int64_t m = 1; m < weights.num_masks; ++m) {
      const bool first_nan =
          mask_quality[m] != mask_quality[m] && mask_quality[best] == mask_quality[best];
      if (mask_quality[m] > mask_quality[best] || first_nan) best = m;
    }
    return best;
  }

  // Computes predicted IoU, and hypernetwork outputs for the masks to be predicted.
  void run_heads() const {
    tokens.pack();
    const int64_t best = predict_iou();
    const int64_t first = params.best ? best : 0;
    for (int64_t i = 0; i < num_outputs; ++i) {
      const int64_t mask = first + i;
      tokens.run_mlp_head(weights.masks[mask], matrices.masks[mask], params.first_mask_token + mask,
                          dim, eighth, mask_weights + i * eighth);
    }
  }

  // Upscales each token of a block to 4 x 4 pixels. A mask logit is the dot product of the mask's
  // hypernetwork output with the pixel's channels.
  void predict_masks(int64_t object, int64_t block) const {
    const int64_t frame = params.frames > 1 ? object : 0;
    pack_sum<Dot>(shared.stream + block * pitch, nullptr, kBlock, 0, dim, kBlock, tile.packed,
                  kStride);
    linear(matrices.up1, 4 * quarter, dim, tile.packed, tile.product);
    for (int64_t cell = 0; cell < 4; ++cell) {
      float* const part = tile.product + cell * quarter * kStride;
      float* const mid_features = caches_frame(params) ? cached_mid(block, cell) : tile.gathered();
      if (!caches_frame(params)) gather_mid(frame, block, cell, mid_features);
      add_bias_and_map(part, weights.up1.bias, mid_features, quarter);
      layer_norm<DotFloat>(part, kStride, weights.up_norm, kMapEpsilon, quarter, kBlock, part,
                           kStride);
      pack_rows<Dot, GeluOf<Dot>>(part, kStride, nullptr, quarter, kBlock, tile.with_position,
                                  kStride);
      linear(matrices.up2, 4 * eighth, quarter, tile.with_position, tile.pixels);
      for (int64_t subcell = 0; subcell < 4; ++subcell) {
        float* const pixels = tile.pixels + subcell * eighth * kStride;
        float* const high_features =
            caches_frame(params) ? cached_high(block, cell, subcell) : tile.gathered();
        if (!caches_frame(params)) gather_high(frame, block, cell, subcell, high_features);
        add_bias_and_map(pixels, weights.up2.bias, high_features, eighth);
        pack_rows<DotFloat, Gelu>(pixels, kStride, nullptr, eighth, kBlock, pixels, kStride);
        multiply<DotFloat>({mask_weights, eighth, 1}, pixels, kStride, tile.mask_logits(), kStride,
                           num_outputs, kBlock, eighth, false);
        scatter(object, block, cell / 2 * 2 + subcell / 2, cell % 2 * 2 + subcell % 2);
      }
    }
  }

  // Stores tile.mask_logits as pixels (dy, dx) of the 4 x 4 pixels of each token.
  void scatter(int64_t object, int64_t block, int64_t dy, int64_t dx) const {
    for (int64_t m = 0; m < num_outputs; ++m) {
      float* const to = params.logits + (object * num_outputs + m) * 16 * count;
      int64_t y = block * kBlock / params.width, x = block * kBlock % params.width;
      for (int64_t i = 0; i < count_of(block); ++i) {
        to[(y * 4 + dy) * 4 * params.width + x * 4 + dx] = tile.mask_logits()[m * kStride + i];
        if (++x == params.width) {
          x = 0;
          ++y;
        }
      }
    }
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
