// Operations on a tile of tokens that stays in the cache. A tile is stored channel by channel: row
// c has channel c of all tokens (columns). So vectors run over tokens, weights are broadcast
// directly from torch's layout, and norms and softmax need no reduction across a vector. A row of
// `Unit`s has kDepth channels. As in simd.h, all of this is in the namespace of the instruction
// set.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/cpu/arena.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

// The number of columns of a tile is a multiple of this, one vector of the widest set.
constexpr int64_t kColumns = 16;
// Steps of a sum per partial sum. Shorter partial sums have smaller rounding errors, longer ones
// store results less often.
constexpr int64_t kPartialSteps = 192;
constexpr float kLog2E = 1.4426950408889634f;

// Scale of attention scores over `channels`, for exponentials to base 2.
inline float softmax_scale(int64_t channels) {
  return kLog2E / std::sqrt(static_cast<float>(channels));
}

// Distance between rows of a tile, in elements: an odd number of cache lines, because rows at a
// distance of a power of two would map to few cache sets.
inline int64_t row_stride(int64_t columns) {
  return round_up(columns, 16) + (round_up(columns, 16) / 16 % 2 == 0 ? 16 : 0);
}

// Left operand of a matrix product; element (row, step) is data[row * next_row + step * next_step].
template <class Unit>
struct Left {
  const Unit* data;
  int64_t next_row, next_step;
};

// c[R][V vectors] = (accumulate ? c : 0) + a b. The sum over `steps` is complete before it is added
// to c, because partial sums reduce the rounding error.
template <class Dot, int R, int V>
inline void multiply_tile(Left<typename Dot::Unit> a, const typename Dot::Unit* b, int64_t b_stride,
                          int64_t steps, float* c, int64_t c_stride, bool accumulate) {
  Vec sums[R][V] = {};
  for (int64_t s = 0; s < steps; ++s) {
    Vec columns[V];
    for (int j = 0; j < V; ++j) {
      columns[j] = load(reinterpret_cast<const float*>(b + s * b_stride) + j * kLanes);
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      const Vec row = fill_bits(a.data + r * a.next_row + s * a.next_step);
      for (int j = 0; j < V; ++j) sums[r][j] = Dot::add(sums[r][j], row, columns[j]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < V; ++j) {
      float* const output = c + r * c_stride + j * kLanes;
      store(output, accumulate ? load(output) + sums[r][j] : sums[r][j]);
    }
  }
}

// One strip of V vectors: tiles of kTileRows rows, then of 4 rows, then single rows.
template <class Dot, int V>
inline void multiply_strip(Left<typename Dot::Unit> a, const typename Dot::Unit* b,
                           int64_t b_stride, int64_t steps, float* c, int64_t c_stride,
                           int64_t rows, bool accumulate) {
  constexpr int kTileRows = kAccumulators / V;
  int64_t r = 0;
  const auto from_row = [&](int64_t row) {
    return Left<typename Dot::Unit>{a.data + row * a.next_row, a.next_row, a.next_step};
  };
  for (; r + kTileRows <= rows; r += kTileRows) {
    multiply_tile<Dot, kTileRows, V>(from_row(r), b, b_stride, steps, c + r * c_stride, c_stride,
                                     accumulate);
  }
  for (; r + 4 <= rows; r += 4) {
    multiply_tile<Dot, 4, V>(from_row(r), b, b_stride, steps, c + r * c_stride, c_stride,
                             accumulate);
  }
  for (; r < rows; ++r) {
    multiply_tile<Dot, 1, V>(from_row(r), b, b_stride, steps, c + r * c_stride, c_stride,
                             accumulate);
  }
}

// c[rows][columns] = (accumulate ? c : 0) + a[rows][steps] b[steps][columns]. `columns` is a
// multiple of kColumns.
template <class Dot>
void multiply(Left<typename Dot::Unit> a, const typename Dot::Unit* b, int64_t b_stride, float* c,
              int64_t c_stride, int64_t rows, int64_t columns, int64_t steps, bool accumulate,
              int64_t partial_steps = kPartialSteps) {
  const int64_t parts = ceil_div(steps, partial_steps), vectors = columns / kLanes;
  const int64_t strips = ceil_div(vectors, kTileVectors);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = steps * part / parts, count = steps * (part + 1) / parts - from;
    const Left<typename Dot::Unit> left{a.data + from * a.next_step, a.next_row, a.next_step};
    const bool add = accumulate || part > 0;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t first = vectors * strip / strips;
      const int64_t width = vectors * (strip + 1) / strips - first;
      const typename Dot::Unit* right = b + from * b_stride + first * kLanes;
      float* const out = c + first * kLanes;
      if (width == 1) {
        multiply_strip<Dot, 1>(left, right, b_stride, count, out, c_stride, rows, add);
      }
      if (width == 2) {
        multiply_strip<Dot, 2>(left, right, b_stride, count, out, c_stride, rows, add);
      }
#if defined(__AVX512F__)
      if (width == 3) {
        multiply_strip<Dot, 3>(left, right, b_stride, count, out, c_stride, rows, add);
      }
      if (width == 4) {
        multiply_strip<Dot, 4>(left, right, b_stride, count, out, c_stride, rows, add);
      }
#endif
    }
  }
}

struct Identity {
  static Vec of(Vec x) { return x; }
};

struct Relu {
  static Vec of(Vec x) { return x < 0.0f ? Vec{} : x; }
};

// out[rows / kDepth][columns] units = activation(c + bias). A null bias counts as zero.
template <class Dot, class Activation>
void pack_rows(const float* c, int64_t stride, const float* bias, int64_t rows, int64_t columns,
               typename Dot::Unit* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += Dot::kDepth) {
    float addend[Dot::kDepth];
    for (int d = 0; d < Dot::kDepth; ++d) addend[d] = bias == nullptr ? 0.0f : bias[r + d];
    for (int64_t i = 0; i < columns; i += kLanes) {
      Vec values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) {
        values[d] = Activation::of(load(c + (r + d) * stride + i) + addend[d]);
      }
      Dot::store_rows(values, out + r / Dot::kDepth * out_stride + i);
    }
  }
}

// out[rows][columns] elements = c + bias, with neighbours in a row packed to a unit. A null bias
// counts as zero.
template <class Dot>
void pack_along(const float* c, int64_t stride, const float* bias, int64_t rows, int64_t columns,
                typename Dot::Unit* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const float addend = bias == nullptr ? 0.0f : bias[r];
    for (int64_t i = 0; i < columns; i += kLanes) {
      Dot::store_row(load(c + r * stride + i) + addend, out + r * out_stride, i);
    }
  }
}

// out = x + (c + bias). `out` may be x.
inline void add_rows(const float* x, const float* c, int64_t c_stride, const float* bias,
                     int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns; i += kLanes) {
      const Vec addend = load(c + r * c_stride + i) + bias[r];
      store(out + r * stride + i, load(x + r * stride + i) + addend);
    }
  }
}

// out = layer norm of x over its rows (channels), as units.
template <class Dot>
void layer_norm(const float* x, int64_t stride, const Norm& norm, float epsilon, int64_t rows,
                int64_t columns, typename Dot::Unit* out, int64_t out_stride) {
  for (int64_t i = 0; i < columns; i += kLanes) {
    Vec mean = Vec{}, square = Vec{};
    for (int64_t r = 0; r < rows; ++r) mean = mean + load(x + r * stride + i);
    mean = mean / static_cast<float>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec d = load(x + r * stride + i) - mean;
      square = square + d * d;
    }
    const Vec variance = square / static_cast<float>(rows) + epsilon;
    const Vec rstd = 1.0f / sqrt_of(variance);
    for (int64_t r = 0; r < rows; r += Dot::kDepth) {
      Vec values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) {
        const Vec centred = load(x + (r + d) * stride + i) - mean;
        values[d] = centred * rstd * norm.weight[r + d] + norm.bias[r + d];
      }
      Dot::store_rows(values, out + r / Dot::kDepth * out_stride + i);
    }
  }
}

// Matrices as units of Dot: torch's own memory if its element type fits, else converted copies.
template <class Dot>
struct WeightCopies {
  typedef typename Dot::Unit Unit;
  static constexpr Storage kStorage = Dot::kDepth == 1 ? Storage::kFloat32 : Storage::kBfloat16;
  Storage storage;
  Unit* next;  // memory for the copies, or null to compute only their size `units`
  int64_t units = 0;

  // Makes the following calls of `prepare` copy to `memory`, which has `units` units.
  void start(Unit* memory) {
    next = memory;
    units = 0;
  }

  // Returns a matrix of `elements` elements as units. A null weight stays null.
  const Unit* prepare(const void* weight, int64_t elements) {
    if (weight == nullptr || storage == kStorage) return static_cast<const Unit*>(weight);
    Unit* const copy = next + units;
    units += elements / Dot::kDepth;
    for (int64_t i = 0; next != nullptr && i < elements; i += Dot::kDepth) {
      float values[Dot::kDepth];
      for (int d = 0; d < Dot::kDepth; ++d) values[d] = read(weight, storage, i + d);
      copy[i / Dot::kDepth] = Dot::pack(values, 1);
    }
    return copy;
  }
};

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
