// From uint8 pictures to model input: resized to a square, scaled to [0, 1], normalised by channel.
// Interface between the binding and the kernel; uses neither torch nor Python.
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
  int64_t size;  // side of the output in pixels, 1 to 2^24
  ResampleFilter filter;
  bool columns_first;     // resize along columns before rows, which changes the rounding; only for
                          // bicubic and packed pixels (column stride 3, channel stride 1)
  float mean[3], std[3];  // by channel, of values in [0, 1]
  float* planes;   // [count, 3, size, size], contiguous: (value / 255 - mean) / std; null to write
                   // `bytes` instead
  uint8_t* bytes;  // [count, size, size, 3], contiguous: result of bicubic resizing
};

// Bicubic: every instruction set computes the same bits. Bilinear: each set computes the bits of a
// torch that is compiled for this set. Neither depends on the number of threads. Returns false and
// writes nothing if memory cannot be allocated.
bool preprocess_cpu(const PreprocessParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
