// The mask decoder's prompt tokens: a tile as wide as there are tokens, small enough that every
// thread computes it for itself.
#pragma once

#include "csrc/cpu/attend.h"
#include "csrc/cpu/decoder_weights.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

constexpr float kTokenEpsilon = 1e-5f;
constexpr int64_t kFine = 64;  // steps of a sum at once: scores and pointers are few numbers, whose
                               // errors nothing averages out

// out = units of x + y (y may be null)
template <class Dot>
void pack_sum(const float* x, const float* y, int64_t stride, int64_t y_stride, int64_t rows,
              int64_t columns, typename Dot::Unit* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += Dot::kDepth) {
    for (int64_t i = 0; i < columns; i += kLanes) {
      Vec values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) {
        values[d] = load(x + (r + d) * stride + i);
        if (y != nullptr) values[d] = values[d] + load(y + (r + d) * y_stride + i);
      }
      Dot::put(values, out + r / Dot::kDepth * out_stride + i);
    }
  }
}

// Scratch of one thread; arrays are [rows][stride], unless the comment says otherwise.
template <class Dot>
struct PromptTokens {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const MaskDecoderParams& p;
  int64_t stride;  // of the most tokens that an object has
  float *x, *start, *f,
      *g;               // tokens now and as they came [dim], products [max(dim, hidden widths)]
  Unit *a, *b, *h;      // tokens plus start, tokens, hidden channels
  Unit *q, *k, *v, *o;  // of an attention; values [rows][stride / kDepth]
  Unit *offered_k, *offered_v;  // for the image's attention to the tokens
  Softmax softmax;
  int64_t count = 0, columns = 0;  // tokens of the object, and that rounded up

  static int64_t widest(const MaskDecoderParams& p) {
    const int64_t hidden = p.hidden > p.iou_hidden ? p.hidden : p.iou_hidden,
                  wide = hidden > p.dim ? hidden : p.dim;
    return wide > p.iou_values ? wide : p.iou_values;
  }

  static int64_t floats(const MaskDecoderParams& p) {
    const int64_t wide = widest(p), stride = row_stride(p.prompt_tokens) + kBlock;
    return stride * (10 * p.dim + 3 * wide) + kBlock * kBlock + Softmax::floats(p.dim);
  }

  static PromptTokens make(const MaskDecoderParams& p, float* at) {
    const int64_t wide = widest(p), stride = row_stride(p.prompt_tokens), room = stride + kBlock;
    const auto take = [&](int64_t rows) {
      float* const part = at;
      at += rows * room;
      return part;
    };
    const auto units = [&](int64_t rows) { return reinterpret_cast<Unit*>(take(rows)); };
    float *const x = take(p.dim), *const start = take(p.dim), *const f = take(wide),
                 *const g = take(wide);
    Unit *const a = units(p.dim), *const b = units(p.dim), *const h = units(wide);
    Unit *const q = units(p.dim), *const k = units(p.dim), *const v = units(p.dim),
                *const o = units(p.dim);
    Unit *const offered_k = units(p.dim), *const offered_v = units(p.dim);
    return {p, stride, x, start, f, g,         a,         b,
            h, q,      k, v,     o, offered_k, offered_v, Softmax(at, at + kBlock * kBlock, p.dim)};
  }

  bool exists(int64_t object, int64_t t) const {
    return p.present == nullptr || p.present[object * p.prompt_tokens + t] != 0;
  }

  void enter(int64_t object) {
    count = 0;
    for (int64_t t = 0; t < p.prompt_tokens; ++t) {
      if (!exists(object, t)) continue;
      const float* const from = p.prompts + (object * p.prompt_tokens + t) * p.dim;
      for (int64_t c = 0; c < p.dim; ++c)
        x[c * stride + count] = start[c * stride + count] = from[c];
      ++count;
    }
    columns = round_up(count, kColumns);
    for (int64_t c = 0; c < p.dim; ++c) {
      for (int64_t i = count; i < columns; ++i) x[c * stride + i] = start[c * stride + i] = 0;
    }
  }

  void leave(int64_t object) const {
    int64_t i = 0;
    for (int64_t t = 0; t < p.prompt_tokens; ++t) {
      float* const to = p.tokens + (object * p.prompt_tokens + t) * p.dim;
      const bool here = exists(object, t);
      for (int64_t c = 0; c < p.dim; ++c) to[c] = here ? x[c * stride + i] : 0;
      i += here;
    }
  }

  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* out) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, stride, out, stride, rows, columns,
                  numbers / kDepth, false, kFine);
  }

  void project(const Unit* weight, const Linear& layer, int64_t rows, const Unit* in,
               Unit* out) const {
    linear(weight, rows, p.dim, in, f);
    pack_rows<Dot, Identity>(f, stride, layer.bias, rows, columns, out, stride);
  }

  void project_values(const Unit* weight, const Linear& layer, int64_t rows, const Unit* in,
                      Unit* out) const {
    linear(weight, rows, p.dim, in, f);
    pack_along<Dot>(f, stride, layer.bias, rows, columns, out, stride / kDepth);
  }

  void norm(const Norm& n) const {
    normalise<DotFloat>(x, stride, n.weight, n.bias, kTokenEpsilon, p.dim, columns, x, stride);
  }

  void pack() const {
    pack_sum<Dot>(x, start, stride, stride, p.dim, columns, a, stride);
    pack_sum<Dot>(x, nullptr, stride, 0, p.dim, columns, b, stride);
  }

  // One head of d channels.
  Keys<Dot> keys_of(const Unit* keys, const Unit* values, int64_t h_, int64_t d) const {
    return {keys + h_ * d / kDepth * stride,
            values + h_ * d * (stride / kDepth),
            stride,
            kBlock,
            stride / kDepth,
            kBlock / kDepth,
            count};
  }

  // In the first layer the tokens are still their own position: nothing is added, and nothing kept.
  void attend_self(const TwoWayLayer& l, const LayerMatrices<Dot>& w, bool first) const {
    pack();
    project(w.self.q, l.self.q, p.dim, first ? b : a, q);
    project(w.self.k, l.self.k, p.dim, first ? b : a, k);
    project_values(w.self.v, l.self.v, p.dim, b, v);
    const int64_t d = p.dim / p.heads;
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t row = head * d / kDepth * stride;
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t some = count - i < kBlock ? count - i : kBlock;
        attend<Dot>(q + row + i, stride, round_up(some, kColumns), d / kDepth,
                    keys_of(k, v, head, d), d, scale_of(d), true, softmax);
        // columns that only fill up must stay finite: values are read in pairs
        finish<Dot>(softmax, d, round_up(some, kColumns), o + row + i, stride);
      }
    }
    linear(w.self.out, p.dim, p.dim, o, f);
    if (first) {
      for (int64_t i = 0; i < p.dim * stride; ++i) x[i] = 0;
    }
    add_rows(x, f, stride, l.self.out.bias, p.dim, columns);
    norm(l.norm1);
  }

  static float scale_of(int64_t channels) {
    return kLog2E / std::sqrt(static_cast<float>(channels));
  }

  void ask(const Attention& l, const AttentionMatrices<Dot>& w) const {  // queries to the image
    pack();
    project(w.q, l.q, p.dim / 2, a, q);
  }

  // f holds what the image answered, [dim / 2]
  void hear(const Attention& l, const AttentionMatrices<Dot>& w, const Norm& n) const {
    pack_sum<Dot>(f, nullptr, stride, 0, p.dim / 2, columns, o, stride);
    multiply<Dot>({w.out, p.dim / 2 / kDepth, 1}, o, stride, g, stride, p.dim, columns,
                  p.dim / 2 / kDepth, false, kFine);
    add_rows(x, g, stride, l.out.bias, p.dim, columns);
    norm(n);
  }

  void mlp(const TwoWayLayer& l, const LayerMatrices<Dot>& w) const {
    pack();
    linear(w.fc1, p.hidden, p.dim, b, f);
    pack_rows<Dot, Relu>(f, stride, l.fc1.bias, p.hidden, columns, h, stride);
    linear(w.fc2, p.dim, p.hidden, h, g);
    add_rows(x, g, stride, l.fc2.bias, p.dim, columns);
    norm(l.norm3);
  }

  void offer(const Attention& l,
             const AttentionMatrices<Dot>& w) const {  // keys and values to the image
    pack();
    project(w.k, l.k, p.dim / 2, a, offered_k);
    project_values(w.v, l.v, p.dim / 2, b, offered_v);
  }

  // out[rows]: three layers with ReLU between on token `index` (after `pack`): dim -> hidden ->
  // hidden -> rows
  void ask_token(const Linear* layers, const Unit* const* w, int64_t index, int64_t hidden,
                 int64_t rows, float* out) const {
    linear(w[0], hidden, p.dim, b, f);
    pack_rows<Dot, Relu>(f, stride, layers[0].bias, hidden, columns, h, stride);
    linear(w[1], hidden, hidden, h, f);
    pack_rows<Dot, Relu>(f, stride, layers[1].bias, hidden, columns, h, stride);
    linear(w[2], rows, hidden, h, f);
    for (int64_t c = 0; c < rows; ++c) out[c] = f[c * stride + index] + layers[2].bias[c];
  }
};

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
