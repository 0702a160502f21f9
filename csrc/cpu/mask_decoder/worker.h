// What a thread does with a block of 64 image tokens in the mask decoder, and with all prompt
// tokens. docs/kernels/mask_decoder.md has the passes and their arithmetic.
#pragma once

#include "csrc/cpu/gelu.h"
#include "csrc/cpu/mask_decoder/prompt_tokens.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kMapEpsilon = 1e-6f;  // of the norm between the upscalings

// Keys and values of a block of image tokens: rows of `stride` units.
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
  int64_t head = inner / params.heads;
  int64_t count = params.height * params.width, blocks = ceil_div(count, kBlock);
  int64_t pitch = dim * kBlock;                   // floats of a block of tokens
  int64_t block_units = inner / kDepth * kBlock;  // of queries, keys or values
  int64_t entry = head + 2;                       // floats of a partial attention
  int64_t num_outputs = params.best ? 1 : weights.num_masks;
  float scale = softmax_scale(head);

  static Worker take(Arena& arena, const MaskDecoderParams& params, const Matrices<Dot>& matrices,
                     const Shared<Dot>& shared) {
    const MaskDecoderWeights& weights = params.weights;
    const auto tokens = PromptTokens<Dot>::take(arena, params);
    const auto tile = Tile<Dot>::take(arena, weights.dim);
    float* const mask_weights = arena.take<float>(weights.num_masks * (weights.dim / 8));
    float* const quality = arena.take<float>(weights.iou_values);
    return {params, matrices, shared, tile, tokens, mask_weights, quality};
  }

  int64_t count_of(int64_t block) const { return smaller(count - block * kBlock, kBlock); }

  // out[rows][64] = weight[rows][numbers] in
  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* out) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, kStride, out, kStride, rows, kBlock,
                  numbers / kDepth, false, kFine);
  }

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

  // Row of the pixel (dy, dx) in token t's cell of a map that is `by` times as fine.
  int64_t pixel_of(int64_t frame, int64_t t, int64_t by, int64_t dy, int64_t dx) const {
    const int64_t y = frame * by * params.height + t / params.width * by + dy;
    return y * by * params.width + t % params.width * by + dx;
  }

  // The finer maps' pixels of one place in every token's cell of 2 x 2 or 4 x 4.
  void gather_mid(int64_t frame, int64_t block, int64_t cell, float* out) const {
    gather(params.mid, params.storage, quarter, block, out,
           [&](int64_t t) { return pixel_of(frame, t, 2, cell / 2, cell % 2); });
  }

  void gather_high(int64_t frame, int64_t block, int64_t cell, int64_t fine, float* out) const {
    const int64_t dy = cell / 2 * 2 + fine / 2, dx = cell % 2 * 2 + fine % 2;
    gather(params.high, params.storage, eighth, block, out,
           [&](int64_t t) { return pixel_of(frame, t, 4, dy, dx); });
  }

  float* kept_mid(int64_t block, int64_t cell) const {
    return shared.mid + (block * 4 + cell) * quarter * kBlock;
  }
  float* kept_high(int64_t block, int64_t cell, int64_t fine) const {
    return shared.high + (block * 16 + cell * 4 + fine) * eighth * kBlock;
  }

  void read_frame(int64_t block) const {
    for (int64_t cell = 0; cell < 4; ++cell) {
      gather_mid(0, block, cell, kept_mid(block, cell));
      for (int64_t fine = 0; fine < 4; ++fine) {
        gather_high(0, block, cell, fine, kept_high(block, cell, fine));
      }
    }
  }

  void pack(const float* x, int64_t block) const {
    pack_sum<Dot>(x, nullptr, kBlock, 0, dim, kBlock, tile.packed, kStride);
    pack_sum<Dot>(x, shared.position + block * pitch, kBlock, kBlock, dim, kBlock, tile.positioned,
                  kStride);
  }

  Unit* first_queries(int64_t block) const { return shared.q + block * block_units; }
  BlockKeys<Dot> first_keys(int64_t block) const {
    return {shared.k + block * block_units, shared.v + block * block_units, kBlock};
  }

  // Queries of a packed block to the tokens.
  void project_queries(const AttentionLayer<Dot>& layer, Unit* q, int64_t stride) const {
    linear(layer.matrices.q, inner, dim, tile.positioned, tile.product);
    pack_rows<Dot, Identity>(tile.product, kStride, layer.weights.q.bias, inner, kBlock, q, stride);
  }

  // Keys and values of a packed block for the tokens' attention to it.
  void project_keys(const AttentionLayer<Dot>& layer, const BlockKeys<Dot>& out) const {
    linear(layer.matrices.k, inner, dim, tile.positioned, tile.product);
    pack_rows<Dot, Identity>(tile.product, kStride, layer.weights.k.bias, inner, kBlock, out.k,
                             out.stride);
    linear(layer.matrices.v, inner, dim, tile.packed, tile.product);
    pack_along<Dot>(tile.product, kStride, layer.weights.v.bias, inner, kBlock, out.v,
                    out.stride / kDepth);
  }

  // What of the token-to-image attention does not depend on the object, for a block of the image.
  void project_first_layer(int64_t block) const {
    const TwoWayLayerWeights& layer = weights.layers[0];
    const LayerMatrices<Dot>& m = matrices.layers[0];
    pack(shared.image + block * pitch, block);
    project_queries({layer.image_to_token, m.image_to_token}, first_queries(block), kBlock);
    project_keys({layer.token_to_image, m.token_to_image}, first_keys(block));
  }

  int64_t partial_floats() const { return params.heads * tokens.count * entry; }

  // Token-to-image attention to one block: accumulator, running_max and running_sum of each head
  // and token.
  void attend_block(const BlockKeys<Dot>& block_keys, int64_t block, float* partial) const {
    float* const out = partial + block * partial_floats();
    const Softmax& state = tile.softmax;
    for (int64_t h = 0; h < params.heads; ++h) {
      const Keys<Dot> keys{block_keys.k + h * head / kDepth * block_keys.stride,
                           block_keys.v + h * head * (block_keys.stride / kDepth),
                           block_keys.stride,
                           0,
                           block_keys.stride / kDepth,
                           0,
                           count_of(block)};
      for (int64_t first = 0; first < tokens.count; first += kBlock) {
        const int64_t rows = smaller(tokens.count - first, kBlock);
        const Unit* const q = tokens.q + h * head / kDepth * tokens.stride + first;
        attend<Dot>(q, tokens.stride, round_up(rows, kColumns), head / kDepth, keys, head, scale,
                    true, state);
        for (int64_t r = 0; r < rows; ++r) {
          float* const to = out + (h * tokens.count + first + r) * entry;
          for (int64_t c = 0; c < head; ++c) to[c] = state.accumulator[c * kBlock + r];
          to[head] = state.running_max[r];
          to[head + 1] = state.running_sum[r];
        }
      }
    }
  }

  // The attention to all blocks from that to each, to tokens.product [inner][tokens]: in the order
  // of the blocks, whatever threads computed them.
  void merge_blocks(const float* partial) const {
    for (int64_t h = 0; h < params.heads; ++h) {
      for (int64_t r = 0; r < tokens.columns; ++r) {
        float* const out = tokens.product + h * head * tokens.stride + r;
        if (r < tokens.count) {
          merge_token(partial + (h * tokens.count + r) * entry, out);
        } else {
          for (int64_t c = 0; c < head; ++c) out[c * tokens.stride] = 0;
        }
      }
    }
  }

  // partial: of one head and token in the first block.
  void merge_token(const float* partial, float* out) const {
    const int64_t step = partial_floats();
    float maximum = -INFINITY, total = 0, values[64] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const float other = partial[b * step + head];
      maximum = other > maximum || other != other ? other : maximum;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const float* const at = partial + b * step;
      const float rescale = exp2_of(fill((at[head] - maximum) * scale))[0];
      total += rescale * at[head + 1];
      for (int64_t c = 0; c < head; ++c) values[c] += rescale * at[c];
    }
    for (int64_t c = 0; c < head; ++c) out[c * tokens.stride] = values[c] / total;
  }

  // out = norm(x + the attention of a block's image tokens to the prompt tokens)
  void attend_tokens(int64_t layer, const Unit* q, int64_t stride, const float* x,
                     float* out) const {
    const TwoWayLayerWeights& l = weights.layers[layer];
    for (int64_t h = 0; h < params.heads; ++h) {
      const int64_t row = h * head / kDepth;
      attend<Dot>(q + row * stride, stride, kBlock, head / kDepth,
                  tokens.keys_of(tokens.image_k, tokens.image_v, h, head), head, scale, true,
                  tile.softmax);
      store_attended<Dot>(tile.softmax, head, kBlock, tile.attended + row * kStride, kStride);
    }
    linear(matrices.layers[layer].image_to_token.out, dim, inner, tile.attended, tile.product);
    add_rows(x, tile.product, kStride, l.image_to_token.out.bias, dim, kBlock, out, kBlock);
    layer_norm<DotFloat>(out, kBlock, l.norm4, kTokenEpsilon, dim, kBlock, out, kBlock);
  }

  // A block's image-to-token attention; then its keys and values for the next token-to-image
  // attention, and that attention's partial result.
  void pass_block(int64_t layer, const AttentionLayer<Dot>& next, int64_t block,
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

  // Predicted IoU, to quality; returns the best mask.
  int64_t predict_iou() const {
    tokens.head_of_token(weights.iou, matrices.iou, params.iou_token, weights.iou_hidden,
                         weights.iou_values, quality);
    for (int64_t i = 0; i < weights.iou_values; ++i) quality[i] = 1.0f / (1.0f + expf(-quality[i]));
    const float* const of_masks = quality + params.first_mask_token - params.iou_token - 1;
    int64_t best = 0;
    for (int64_t m = 1; m < weights.num_masks; ++m) {
      const bool first_nan = of_masks[m] != of_masks[m] && of_masks[best] == of_masks[best];
      if (of_masks[m] > of_masks[best] || first_nan) best = m;
    }
    return best;
  }

  // Predicted IoU, and the hypernetwork outputs of the masks that are predicted.
  void run_heads() const {
    tokens.pack();
    const int64_t best = predict_iou();
    const int64_t first = params.best ? best : 0;
    for (int64_t i = 0; i < num_outputs; ++i) {
      const int64_t mask = first + i;
      tokens.head_of_token(weights.masks[mask], matrices.masks[mask],
                           params.first_mask_token + mask, dim, eighth, mask_weights + i * eighth);
    }
  }

  // Each token becomes 4 x 4 pixels; a mask's pixel is the product of its hypernetwork output with
  // the pixel's channels.
  void predict_masks(int64_t object, int64_t block) const {
    const int64_t frame = params.frames > 1 ? object : 0;
    pack_sum<Dot>(shared.stream + block * pitch, nullptr, kBlock, 0, dim, kBlock, tile.packed,
                  kStride);
    linear(matrices.up1, 4 * quarter, dim, tile.packed, tile.product);
    for (int64_t cell = 0; cell < 4; ++cell) {
      float* const part = tile.product + cell * quarter * kStride;
      float* const mid = keeps_frame(params) ? kept_mid(block, cell) : tile.gathered();
      if (!keeps_frame(params)) gather_mid(frame, block, cell, mid);
      add_bias_and_map(part, weights.up1.bias, mid, quarter);
      layer_norm<DotFloat>(part, kStride, weights.up_norm, kMapEpsilon, quarter, kBlock, part,
                           kStride);
      pack_rows<Dot, GeluOf<Dot>>(part, kStride, nullptr, quarter, kBlock, tile.positioned,
                                  kStride);
      linear(matrices.up2, 4 * eighth, quarter, tile.positioned, tile.pixels);
      for (int64_t fine = 0; fine < 4; ++fine) {
        float* const pixels = tile.pixels + fine * eighth * kStride;
        float* const high = keeps_frame(params) ? kept_high(block, cell, fine) : tile.gathered();
        if (!keeps_frame(params)) gather_high(frame, block, cell, fine, high);
        add_bias_and_map(pixels, weights.up2.bias, high, eighth);
        pack_rows<DotFloat, Gelu>(pixels, kStride, nullptr, eighth, kBlock, pixels, kStride);
        multiply<DotFloat>({mask_weights, eighth, 1}, pixels, kStride, tile.mask_logits(), kStride,
                           num_outputs, kBlock, eighth, false);
        scatter(object, block, cell / 2 * 2 + fine / 2, cell % 2 * 2 + fine % 2);
      }
    }
  }

  // tile.mask_logits to params.logits, where pixels (dy, dx) of the tokens' cells lie.
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
