// The mask decoder's prompt tokens: a tile as wide as there are tokens, small enough that every
// thread computes it for itself.
#pragma once

#include "csrc/cpu/mask_decoder/tiles.h"
#include "csrc/cpu/mask_decoder/weights.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kTokenEpsilon = 1e-5f;
constexpr int64_t kFine = 64;  // steps of a sum at once: scores and pointers are few numbers, whose
                               // errors nothing averages out

// Scratch of one thread; arrays are [rows][stride], unless the comment says otherwise.
template <class Dot>
struct PromptTokens {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const MaskDecoderParams& params;
  int64_t stride;             // of the most tokens that an object has
  float *x, *start;           // [dim]: tokens now, and as they came, which is also their position
  float *product, *mlp_sum;   // [widest]: of matrices, not yet packed
  Unit *packed, *positioned;  // [dim]: x, and x + start
  Unit* hidden;               // [widest]
  Unit *q, *k, *v;            // of an attention of the tokens; values [rows][stride / kDepth]
  Unit* attended;
  Unit *image_k, *image_v;  // of the tokens, for the image's attention to them
  Softmax softmax;
  int64_t dim = params.weights.dim;
  int64_t count = 0, columns = 0;  // tokens of the object, and that rounded up

  static int64_t widest(const MaskDecoderWeights& weights) {
    return larger(larger(weights.hidden, weights.iou_hidden),
                  larger(weights.dim, weights.iou_values));
  }

  static PromptTokens take(Arena& arena, const MaskDecoderParams& params) {
    const int64_t dim = params.weights.dim, wide = widest(params.weights);
    const int64_t stride = row_stride(params.prompt_tokens), room = stride + kBlock;
    const auto floats = [&](int64_t rows) { return arena.take<float>(rows * room); };
    const auto units = [&](int64_t rows) { return arena.take<Unit>(rows * room); };
    float* const x = floats(dim);
    float* const start = floats(dim);
    float* const product = floats(wide);
    float* const mlp_sum = floats(wide);
    Unit* const packed = units(dim);
    Unit* const positioned = units(dim);
    Unit* const hidden = units(wide);
    Unit* const q = units(dim);
    Unit* const k = units(dim);
    Unit* const v = units(dim);
    Unit* const attended = units(dim);
    Unit* const image_k = units(dim);
    Unit* const image_v = units(dim);
    const Softmax softmax = Softmax::take(arena, dim);
    return {params, stride, x, start, product,  mlp_sum, packed,  positioned,
            hidden, q,      k, v,     attended, image_k, image_v, softmax};
  }

  bool is_present(int64_t object, int64_t t) const {
    return params.present == nullptr || params.present[object * params.prompt_tokens + t] != 0;
  }

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

  void set(int64_t channel, int64_t column, float value) const {
    x[channel * stride + column] = value;
    start[channel * stride + column] = value;
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

  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* out) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, stride, out, stride, rows, columns,
                  numbers / kDepth, false, kFine);
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

  // x += added + bias
  void add_residual(const float* added, const float* bias) const {
    add_rows(x, added, stride, bias, dim, columns, x, stride);
  }

  void norm(const Norm& layer) const {
    layer_norm<DotFloat>(x, stride, layer, kTokenEpsilon, dim, columns, x, stride);
  }

  void pack() const {
    pack_sum<Dot>(x, start, stride, stride, dim, columns, positioned, stride);
    pack_sum<Dot>(x, nullptr, stride, 0, dim, columns, packed, stride);
  }

  // One head, of d channels.
  Keys<Dot> keys_of(const Unit* keys, const Unit* values, int64_t head, int64_t d) const {
    return {keys + head * d / kDepth * stride,
            values + head * d * (stride / kDepth),
            stride,
            kBlock,
            stride / kDepth,
            kBlock / kDepth,
            count};
  }

  // In the first layer the tokens are still their own position: nothing is added, nothing kept.
  void attend_self(const TwoWayLayerWeights& layer, const AttentionMatrices<Dot>& matrices,
                   bool first) const {
    const AttentionWeights& weights = layer.self_attention;
    pack();
    const Unit* const in = first ? packed : positioned;
    project(matrices.q, weights.q, dim, in, q);
    project(matrices.k, weights.k, dim, in, k);
    project_values(matrices.v, weights.v, dim, packed, v);
    const int64_t d = dim / params.heads;
    for (int64_t head = 0; head < params.heads; ++head) {
      const int64_t row = head * d / kDepth * stride;
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t num_queries = round_up(smaller(count - i, kBlock), kColumns);
        attend<Dot>(q + row + i, stride, num_queries, d / kDepth, keys_of(k, v, head, d), d,
                    softmax_scale(d), true, softmax);
        // columns that only fill up must stay finite: values are read in pairs
        store_attended<Dot>(softmax, d, num_queries, attended + row + i, stride);
      }
    }
    linear(matrices.out, dim, dim, attended, product);
    if (first) {
      for (int64_t i = 0; i < dim * stride; ++i) x[i] = 0;
    }
    add_residual(product, weights.out.bias);
    norm(layer.norm1);
  }

  // Queries to the image.
  void project_queries(const AttentionLayer<Dot>& layer) const {
    pack();
    project(layer.matrices.q, layer.weights.q, dim / 2, positioned, q);
  }

  // Keys and values for the image.
  void project_keys(const AttentionLayer<Dot>& layer) const {
    pack();
    project(layer.matrices.k, layer.weights.k, dim / 2, positioned, image_k);
    project_values(layer.matrices.v, layer.weights.v, dim / 2, packed, image_v);
  }

  // Adds what was attended to in the image, which `product` holds, [dim / 2]; then the norm.
  void add_attended(const AttentionLayer<Dot>& layer, const Norm& after) const {
    const int64_t inner = dim / 2;
    pack_sum<Dot>(product, nullptr, stride, 0, inner, columns, attended, stride);
    linear(layer.matrices.out, dim, inner, attended, mlp_sum);
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

  // out[rows]: three layers on token `index`, after `pack`: dim -> width -> width -> rows
  void head_of_token(const MlpWeights& layers, const MlpMatrices<Dot>& matrices, int64_t index,
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
