// Conversion between stored tensors (rows are tokens) and tiles (rows are channels), four tokens
// and four channels at a time.
#pragma once

#include <cstdint>

#include "csrc/cpu/simd.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

// Element i of a stored tensor.
inline float read(const void* data, Storage storage, int64_t i) {
  if (storage == Storage::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return storage == Storage::kBfloat16 ? from_bfloat16(half) : from_float16(half);
}

inline void write(void* data, Storage storage, int64_t i, float x) {
  if (storage == Storage::kFloat32) static_cast<float*>(data)[i] = x;
  else
    static_cast<uint16_t*>(data)[i] =
        storage == Storage::kBfloat16 ? to_bfloat16(x) : to_float16(x);
}

typedef float Four __attribute__((vector_size(16)));
typedef float FourUnaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t FourWords __attribute__((vector_size(16)));
typedef uint16_t FourHalves __attribute__((vector_size(8)));
typedef uint16_t FourHalvesUnaligned __attribute__((vector_size(8), aligned(2), may_alias));

inline Four read_four(const void* data, Storage storage, int64_t i) {
  if (storage == Storage::kFloat32) {
    return *reinterpret_cast<const FourUnaligned*>(static_cast<const float*>(data) + i);
  }
  const uint16_t* const halves = static_cast<const uint16_t*>(data) + i;
  if (storage == Storage::kFloat16) {
    return Four{from_float16(halves[0]), from_float16(halves[1]), from_float16(halves[2]),
                from_float16(halves[3])};
  }
  return reinterpret_cast<Four>(
      __builtin_convertvector(*reinterpret_cast<const FourHalvesUnaligned*>(halves), FourWords)
      << 16);
}

inline void write_four(void* data, Storage storage, int64_t i, Four x) {
  if (storage == Storage::kFloat32) {
    *reinterpret_cast<FourUnaligned*>(static_cast<float*>(data) + i) = x;
  } else if (storage == Storage::kBfloat16) {
    const FourWords bits = reinterpret_cast<FourWords>(x);
    const FourWords rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16,
                    nan = (bits >> 16) | 0x40u;
    *reinterpret_cast<FourHalvesUnaligned*>(static_cast<uint16_t*>(data) + i) =
        __builtin_convertvector(x == x ? rounded : nan, FourHalves);
  } else {
    for (int j = 0; j < 4; ++j) static_cast<uint16_t*>(data)[i + j] = to_float16(x[j]);
  }
}

// Transposes 4 x 4 elements in place.
inline void transpose(Four* x) {
  const FourWords unpack_low{0, 4, 1, 5}, unpack_high{2, 6, 3, 7}, first_halves{0, 1, 4, 5},
      second_halves{2, 3, 6, 7};
  const Four low_top = __builtin_shuffle(x[0], x[1], unpack_low);
  const Four high_top = __builtin_shuffle(x[0], x[1], unpack_high);
  const Four low_bottom = __builtin_shuffle(x[2], x[3], unpack_low);
  const Four high_bottom = __builtin_shuffle(x[2], x[3], unpack_high);
  x[0] = __builtin_shuffle(low_top, low_bottom, first_halves);
  x[1] = __builtin_shuffle(low_top, low_bottom, second_halves);
  x[2] = __builtin_shuffle(high_top, high_bottom, first_halves);
  x[3] = __builtin_shuffle(high_top, high_bottom, second_halves);
}

// Column i of out[channels][stride] = row `row(i)` of a stored tensor, for i < count; zeros from
// `count` to `columns`.
template <class Row>
void gather_rows(const void* data, Storage storage, int64_t channels, int64_t count,
                 int64_t columns, float* out, int64_t stride, Row row) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    int64_t from[4], c = 0;
    for (int64_t j = 0; j < 4; ++j) from[j] = row(i + j) * channels;
    for (; c + 4 <= channels; c += 4) {
      Four x[4];
      for (int64_t j = 0; j < 4; ++j) x[j] = read_four(data, storage, from[j] + c);
      transpose(x);
      for (int64_t j = 0; j < 4; ++j) {
        *reinterpret_cast<FourUnaligned*>(out + (c + j) * stride + i) = x[j];
      }
    }
    for (; c < channels; ++c) {
      for (int64_t j = 0; j < 4; ++j) out[c * stride + i + j] = read(data, storage, from[j] + c);
    }
  }
  for (; i < columns; ++i) {
    const int64_t from = i < count ? row(i) * channels : 0;
    for (int64_t c = 0; c < channels; ++c) {
      out[c * stride + i] = i < count ? read(data, storage, from + c) : 0;
    }
  }
}

// Row `row(i)` of a stored tensor = column i of x[channels][stride].
template <class Row>
void scatter_rows(const float* x, int64_t stride, int64_t channels, int64_t count, void* data,
                  Storage storage, Row row) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    int64_t to[4], c = 0;
    for (int64_t j = 0; j < 4; ++j) to[j] = row(i + j) * channels;
    for (; c + 4 <= channels; c += 4) {
      Four y[4];
      for (int64_t j = 0; j < 4; ++j) {
        y[j] = *reinterpret_cast<const FourUnaligned*>(x + (c + j) * stride + i);
      }
      transpose(y);
      for (int64_t j = 0; j < 4; ++j) write_four(data, storage, to[j] + c, y[j]);
    }
    for (; c < channels; ++c) {
      for (int64_t j = 0; j < 4; ++j) write(data, storage, to[j] + c, x[c * stride + i + j]);
    }
  }
  for (; i < count; ++i) {
    const int64_t to = row(i) * channels;
    for (int64_t c = 0; c < channels; ++c) write(data, storage, to + c, x[c * stride + i]);
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
