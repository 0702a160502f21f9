// The mask decoder's scratch memory for image tokens.
#pragma once

#include "csrc/cpu/attend.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

// What all threads share. The frame's tokens lie in blocks of 64 columns: [blocks][rows][64].
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  float *image, *position,
      *x;             // [dim]: before the first layer, of the places, of the object at work
  float *mid, *high;  // [4 places][dim / 4], [16 places][dim / 8]
  Unit *q, *k,
      *v;  // [dim / 2] of the first layer, made once for all objects where they share the image
  float* partial[2];  // [blocks][heads * tokens][head + 2]: weighted values, maximum, sum; two,
                      // used in turn
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float *f, *g;
  Unit *n, *placed, *q, *k, *v, *o;
  Softmax softmax;
};

// x[rows][64] += bias + map
inline void add_bias_and(float* x, int64_t stride, const float* bias, const float* map,
                         int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < kBlock; i += kLanes)
      store(x + r * stride + i, load(x + r * stride + i) + bias[r] + load(map + r * kBlock + i));
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
