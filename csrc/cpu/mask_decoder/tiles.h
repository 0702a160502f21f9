// Scratch memory of the mask decoder for image tokens.
#pragma once

#include "csrc/cpu/attend.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Whether mid_features and high_features are converted to blocks once and cached, because several
// objects read them.
inline bool caches_frame(const MaskDecoderParams& params) {
  return params.frames == 1 && params.objects > 1;
}

// Memory that all threads share. Image tokens are stored in blocks of 64 columns:
// [blocks][rows][64]; comments give the rows.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  float *image, *position;  // [dim]: image tokens before the first layer; their positions
  float* stream;            // [dim]: image tokens of the current object after a layer
  float *mid_features, *high_features;  // [4 positions][dim / 4], [16 positions][dim / 8]
  Unit *q, *k, *v;    // [dim / 2]: of the first layer, computed once if the objects share the image
  float* partial[2];  // [blocks][heads * tokens][head_dim + 2]: accumulator, running_max,
                      // running_sum; two alternating buffers

  static Shared allocate(Arena& arena, const MaskDecoderParams& params) {
    const int64_t dim = params.weights.dim;
    const int64_t blocks = ceil_div(params.height * params.width, kBlock);
    const int64_t floats = blocks * kBlock * dim;
    const int64_t cached_floats = caches_frame(params) ? floats : 0;
    const int64_t partial = blocks * params.prompt_tokens * (dim / 2 + 2 * params.heads);
    Shared shared{};
    shared.image = arena.allocate<float>(floats);
    shared.position = arena.allocate<float>(floats);
    shared.stream = arena.allocate<float>(floats);
    shared.mid_features = arena.allocate<float>(cached_floats);
    shared.high_features = arena.allocate<float>(2 * cached_floats);
    shared.q = arena.allocate<Unit>(floats / 2);
    shared.k = arena.allocate<Unit>(floats / 2);
    shared.v = arena.allocate<Unit>(floats / 2);
    for (float*& buffer : shared.partial) buffer = arena.allocate<float>(partial);
    return shared;
  }
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float* product;       // output of a matrix product, not yet packed
  float* pixels;        // output of the second upscaling
  Unit* packed;         // image tokens
  Unit* with_position;  // image tokens plus their positions; also output of the first upscaling
  Unit *q, *k, *v;
  Unit* attention_out;
  Softmax softmax;

  // the prediction of masks reuses the memory of queries and keys
  float* gathered() const { return reinterpret_cast<float*>(q); }
  float* mask_logits() const { return reinterpret_cast<float*>(k); }

  static Tile allocate(Arena& arena, int64_t dim) {
    float* const product = arena.allocate<float>(dim * kStride);
    float* const pixels = arena.allocate<float>(dim * kStride);
    Unit* const packed = arena.allocate<Unit>(dim * kStride);
    Unit* const with_position = arena.allocate<Unit>(dim * kStride);
    Unit* const q = arena.allocate<Unit>(dim * kStride);
    Unit* const k = arena.allocate<Unit>(dim * kStride);
    Unit* const v = arena.allocate<Unit>(dim * kStride);
    Unit* const attention_out = arena.allocate<Unit>(dim * kStride);
    const Softmax softmax = Softmax::allocate(arena, dim);
    return {product, pixels, packed, with_position, q, k, v, attention_out, softmax};
  }
};

// x[rows][64] += bias + map.
inline void add_bias_and_map(float* x, const float* bias, const float* map, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      float* const out = x + r * kStride + i;
      store(out, load(out) + bias[r] + load(map + r * kBlock + i));
    }
  }
}

// out = x + y as units. y may be null.
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
      Dot::store_rows(values, out + r / Dot::kDepth * out_stride + i);
    }
  }
}

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
