// The mask decoder's prompt tokens: one tile with all tokens of an object as columns. It is small,
// so every thread computes all of it redundantly.
#pragma once

#include "csrc/cpu/mask_decoder/tiles.h"
#include "csrc/cpu/mask_decoder/weights.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kTokenEpsilon = 1e-5f;
// Steps of a sum per partial sum. They are shorter than kPartialSteps because the rounding errors
// of IoU scores and object pointers, which are few values, do not average out.
constexpr int64_t kShortPartialSteps = 64;

// Scratch memory of one thread. Arrays are [rows][stride] unless noted; comments give the rows.
template <class Dot>
struct PromptTokens {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const MaskDecoderParams& params;
  int64_t stride;                // for the maximum number of tokens of an object
  float *x, *position;           // [dim]: current tokens; initial tokens, which are also positions
  float *product, *mlp_sum;      // [max_channels]: outputs of matrix products, not yet packed
  Unit *packed, *with_position;  // [dim]: x, and x + position
  Unit* hidden;                  // [max_channels]
  Unit *q, *k, *v;               // [dim]: of one attention; values [dim][stride / kDepth]
  Unit* attention_out;           // [dim]
  Unit *image_k, *image_v;       // [dim / 2]: keys and values for image-to-token attention
  Softmax softmax;
  int64_t dim = params.weights.dim;
  int64_t count = 0, columns = 0;  // tokens of the current object; rounded up to kColumns

  static int64_t max_channels(const MaskDecoderWeights& weights) {
    return larger(larger(weights.hidden, weights.iou_hidden),
                  larger(weights.dim, weights.iou_values));
  }

  static PromptTokens allocate(Arena& arena, const MaskDecoderParams& params) {
    const int64_t dim = params.weights.dim, max_rows = max_channels(params.weights);
    const int64_t stride = row_stride(params.prompt_tokens), padded_stride = stride + kBlock;
    const auto floats = [&](int64_t rows) { return arena.allocate<float>(rows * padded_stride); };
    const auto units = [&](int64_t rows) { return arena.allocate<Unit>(rows * padded_stride); };
    float* const x = floats(dim);
    float* const position = floats(dim);
    float* const product = floats(max_rows);
    float* const mlp_sum = floats(max_rows);
    Unit* const packed = units(dim);
    Unit* const with_position = units(dim);
    Unit* const hidden = units(max_rows);
    Unit* const q = units(dim);
    Unit* const k = units(dim);
    Unit* const v = units(dim);
    Unit* const attention_out = units(dim);
    Unit* const image_k = units(dim);
    Unit* const image_v = units(dim);
    const Softmax softmax = Softmax::allocate(arena, dim);
    return {params, stride, x, position, product,       mlp_sum, packed,  with_position,
            hidden, q,      k, v,        attention_out, image_k, image_v, softmax};
  }

  bool is_present(int64_t object, int64_t t) const {
    return params.present == nullptr || params.present[object * params.prompt_tokens + t] != 0;
  }

  // Loads the prompt tokens of an object that are present.
  void read_prompts(int64_t object) {
    count = 0;
    for (int64_t t = 0; t < params.prompt_tokens; ++t) {
      if (!is_present(object, t)) continue;
      const float* const from = params.prompts + (object * params.prompt_tokens + t) * dim;
      for (int64_t c = 0; c < dim; ++c) set(c, count, from[c]);
      ++count;
    }
    columns = round_up(count, kColumns);
    for (int64_t c = 0; c < dim; ++c) {
      for (int64_t i = count; i < columns; ++i) set(c, i, 0);
    }
  }

  // Sets a current and initial token's channel.
  void set(int64_t channel, int64_t column, float value) const {
    x[channel * stride + column] = value;
    position[channel * stride + column] = value;
  }

  void write_tokens(int64_t object) const {
    int64_t i = 0;
    for (int64_t t = 0; t < params.prompt_tokens; ++t) {
      float* const to = params.tokens + (object * params.prompt_tokens + t) * dim;
      const bool present = is_present(object, t);
      for (int64_t c = 0; c < dim; ++c) to[c] = present ? x[c * stride + i] : 0;
      i += present;
    }
  }

  void linear(const Unit* weight, int64_t rows, int64_t in_channels, const Unit* in,
              float* out) const {
    multiply<Dot>({weight, in_channels / kDepth, 1}, in, stride, out, stride, rows, columns,
                  in_channels / kDepth, false, kShortPartialSteps);
  }

  void project(const Unit* weight, const Linear& layer, int64_t rows, const Unit* in,
               Unit* out) const {
    linear(weight, rows, dim, in, product);
    pack_rows<Dot, Identity>(product, stride, layer.bias, rows, columns, out, stride);
  }

  void project_values(const Unit* weight, const Linear& layer, int64_t rows, const Unit* in,
                      Unit* out) const {
    linear(weight, rows, dim, in, product);
    pack_along<Dot>(product, stride, layer.bias, rows, columns, out, stride / kDepth);
  }

  // x += added + bias.
  void add_residual(const float* added, const float* bias) const {
    add_rows(x, added, stride, bias, dim, columns, x, stride);
  }

  void norm(const Norm& layer) const {
    layer_norm<DotFloat>(x, stride, layer, kTokenEpsilon, dim, columns, x, stride);
  }

  // Packs x and x + position.
  void pack() const {
    pack_sum<Dot>(x, position, stride, stride, dim, columns, with_position, stride);
    pack_sum<Dot>(x, nullptr, stride, 0, dim, columns, packed, stride);
  }

  // Keys and values of one head of `head_dim` channels.
  Keys<Dot> keys_of(const Unit* keys, const Unit* values, int64_t head, int64_t head_dim) const {
    return {keys + head * head_dim / kDepth * stride,
            values + head * head_dim * (stride / kDepth),
            stride,
            kBlock,
            stride / kDepth,
            kBlock / kDepth,
            count};
  }

  // Self-attention and its norm. In the first layer no position is added, because the tokens equal
  // their positions, and there is no residual.
  void attend_self(const TwoWayLayerWeights& layer, const AttentionMatrices<Dot>& matrices,
                   bool first) const {
    const AttentionWeights& weights = layer.self_attention;
    pack();
    const Unit* const in = first ? packed : with_position;
    project(matrices.q, weights.q, dim, in, q);
    project(matrices.k, weights.k, dim, in, k);
    project_values(matrices.v, weights.v, dim, packed, v);
    const int64_t head_dim = dim / params.heads;
    for (int64_t head = 0; head < params.heads; ++head) {
      const int64_t row = head * head_dim / kDepth * stride;
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t num_queries = round_up(smaller(count - i, kBlock), kColumns);
        attend<Dot>(q + row + i, stride, num_queries, head_dim / kDepth,
                    keys_of(k, v, head, head_dim), head_dim, softmax_scale(head_dim), true,
                    softmax);
        // padding columns are stored, too: they must be finite, because values are read in pairs
        store_attention<Dot>(softmax, head_dim, num_queries, attention_out + row + i, stride);
      }
    }
    linear(matrices.out, dim, dim, attention_out, product);
    if (first) {
      for (int64_t i = 0; i < dim * stride; ++i) x[i] = 0;
    }
    add_residual(product, weights.out.bias);
    norm(layer.norm1);
  }

  // Queries for token-to-image attention.
  void project_queries(const AttentionLayer<Dot>& layer) const {
    pack();
    project(layer.matrices.q, layer.weights.q, dim / 2, with_position, q);
  }

  // Keys and values for image-to-token attention.
  void project_keys(const AttentionLayer<Dot>& layer) const {
    pack();
    project(layer.matrices.k, layer.weights.k, dim / 2, with_position, image_k);
    project_values(layer.matrices.v, layer.weights.v, dim / 2, packed, image_v);
  }

  // Projects the output of token-to-image attention, `product` [dim / 2], adds it to x, then
  // applies the norm.
  void add_attention(const AttentionLayer<Dot>& layer, const Norm& after) const {
    const int64_t inner = dim / 2;
    pack_sum<Dot>(product, nullptr, stride, 0, inner, columns, attention_out, stride);
    linear(layer.matrices.out, dim, inner, attention_out, mlp_sum);
    add_residual(mlp_sum, layer.weights.out.bias);
    norm(after);
  }

  void mlp(const TwoWayLayerWeights& layer, const LayerMatrices<Dot>& matrices) const {
    const int64_t width = params.weights.hidden;
    pack();
    linear(matrices.fc1, width, dim, packed, product);
    pack_rows<Dot, Relu>(product, stride, layer.fc1.bias, width, columns, hidden, stride);
    linear(matrices.fc2, dim, width, hidden, mlp_sum);
    add_residual(mlp_sum, layer.fc2.bias);
    norm(layer.norm3);
  }

  // out[rows] = a three-layer MLP of token `index`: dim -> width -> width -> rows. Call `pack`
  // before.
  void run_mlp_head(const MlpWeights& layers, const MlpMatrices<Dot>& matrices, int64_t index,
                    int64_t width, int64_t rows, float* out) const {
    linear(matrices.linear1, width, dim, packed, product);
    pack_rows<Dot, Relu>(product, stride, layers.linear1.bias, width, columns, hidden, stride);
    linear(matrices.linear2, width, width, hidden, product);
    pack_rows<Dot, Relu>(product, stride, layers.linear2.bias, width, columns, hidden, stride);
    linear(matrices.linear3, rows, width, hidden, product);
    for (int64_t c = 0; c < rows; ++c) {
      out[c] = product[c * stride + index] + layers.linear3.bias[c];
    }
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
