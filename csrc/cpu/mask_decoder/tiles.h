// The mask decoder's scratch memory for image tokens.
#pragma once

#include "csrc/cpu/attend.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Whether the finer maps are kept in blocks: several objects read them. Else each is read once.
inline bool keeps_frame(const MaskDecoderParams& params) {
  return params.frames == 1 && params.objects > 1;
}

// What all threads share. The frame's tokens lie in blocks of 64 columns: [blocks][rows][64].
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  float *image, *position;  // [dim]: the image tokens before the first layer; their positions
  float* stream;            // [dim]: of the current object
  float *mid, *high;        // [4 places][dim / 4], [16 places][dim / 8]
  Unit *q, *k, *v;  // [dim / 2] of the first layer, made once for all objects that share the image
  float* partial[2];  // [blocks][heads * tokens][head + 2]: accumulator, running_max, running_sum;
                      // two, used in turn

  static Shared take(Arena& arena, const MaskDecoderParams& params) {
    const int64_t dim = params.weights.dim;
    const int64_t blocks = ceil_div(params.height * params.width, kBlock);
    const int64_t numbers = blocks * kBlock * dim;
    const int64_t kept = keeps_frame(params) ? numbers : 0;
    const int64_t partial = blocks * params.prompt_tokens * (dim / 2 + 2 * params.heads);
    Shared shared{};
    shared.image = arena.take<float>(numbers);
    shared.position = arena.take<float>(numbers);
    shared.stream = arena.take<float>(numbers);
    shared.mid = arena.take<float>(kept);
    shared.high = arena.take<float>(2 * kept);
    shared.q = arena.take<Unit>(numbers / 2);
    shared.k = arena.take<Unit>(numbers / 2);
    shared.v = arena.take<Unit>(numbers / 2);
    for (float*& one : shared.partial) one = arena.take<float>(partial);
    return shared;
  }
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float* product;    // of a matrix, not yet packed
  float* pixels;     // of the second upscaling
  Unit* packed;      // the frame's tokens
  Unit* positioned;  // the same plus their position; also the first upscaling's pixels
  Unit *q, *k, *v;
  Unit* attended;
  Softmax softmax;

  // queries and keys are not needed any more when masks are predicted
  float* gathered() const { return reinterpret_cast<float*>(q); }
  float* mask_logits() const { return reinterpret_cast<float*>(k); }

  static Tile take(Arena& arena, int64_t dim) {
    float* const product = arena.take<float>(dim * kStride);
    float* const pixels = arena.take<float>(dim * kStride);
    Unit* const packed = arena.take<Unit>(dim * kStride);
    Unit* const positioned = arena.take<Unit>(dim * kStride);
    Unit* const q = arena.take<Unit>(dim * kStride);
    Unit* const k = arena.take<Unit>(dim * kStride);
    Unit* const v = arena.take<Unit>(dim * kStride);
    Unit* const attended = arena.take<Unit>(dim * kStride);
    const Softmax softmax = Softmax::take(arena, dim);
    return {product, pixels, packed, positioned, q, k, v, attended, softmax};
  }
};

// x[rows][64] += bias + map
inline void add_bias_and_map(float* x, const float* bias, const float* map, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      float* const at = x + r * kStride + i;
      store(at, load(at) + bias[r] + load(map + r * kBlock + i));
    }
  }
}

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

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
