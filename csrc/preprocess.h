// Pictures of bytes to model input: resized to a square, scaled to [0, 1], normalised by channel.
// Contract between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

namespace sam2_fast {

enum class ResampleFilter : int32_t {
  kBilinear,  // torch's antialiased bilinear interpolation, in float32 on bytes / 255
  kBicubic,   // Pillow's bicubic, in fixed point from bytes to bytes
};

struct PreprocessParams {
  const uint8_t* pictures;       // [count, height, width, 3], of any strides
  int64_t count, height, width;  // pictures, pixels; sides 1 to 2^24
  int64_t picture_stride, row_stride, column_stride, channel_stride;  // bytes
  int64_t size;  // pixels of a side of what is written, 1 to 2^24
  ResampleFilter filter;
  bool columns_first;     // bicubic of packed pixels (strides 3 and 1): columns are resized before
                          // rows, which rounds otherwise
  float mean[3], std[3];  // by channel, of values in [0, 1]
  float* planes;          // [count, 3, size, size], contiguous: (value / 255 - mean) / std; or null
  uint8_t* bytes;  // [count, size, size, 3], contiguous: what bicubic resizing gives; written where
                   // `planes` is null
};

// Bicubic: every instruction set computes the same bits. Bilinear: those that torch, compiled for
// the set, does. Neither depends on the number of threads. Returns false, with nothing written,
// without memory.
bool preprocess_cpu(const PreprocessParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
