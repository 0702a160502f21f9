// The memory encoder: mask logits are resized to 16 times the height and width of the frame's token
// grid, convolved down to that grid and added to the frame's features; ConvNeXt blocks and a
// projection turn the sum into a memory map. Interface between the binding and the kernel; uses
// neither torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

// 3 x 3 convolution of stride 2 with a border of zeros, layer norm over the channels, GELU.
struct MaskConvolutionWeights {
  const void* weight;  // [channels, 9 * input channels], columns by position (dy, dx), then channel
  const float* bias;   // [channels]
  Norm norm;
  int64_t channels;
};

// 7 x 7 convolution with a border of zeros.
struct DepthwiseWeights {
  const float* weight;  // [dim, 49], positions (dy, dx)
  const float* bias;    // [dim]
};

// x + gamma * fc2(GELU(fc1(norm(depthwise(x))))).
struct FuserBlockWeights {
  DepthwiseWeights depthwise;
  Norm norm;           // [dim]
  Linear fc1, fc2;     // dim -> hidden -> dim
  const float* gamma;  // [dim]
};

struct MemoryEncoderWeights {
  MaskConvolutionWeights convolutions[4];  // even channels
  Linear mask_proj;                        // channels of the last convolution -> dim
  Linear low_proj;                         // dim -> dim
  const FuserBlockWeights* blocks;         // [num_blocks]
  Linear out_proj;                         // dim -> memory_dim
  Storage storage;     // of the linear layers and the last two convolutions; the first two: float32
  int64_t num_blocks;  // >= 1
  int64_t dim, hidden, memory_dim;  // channels, dim and hidden even
};

struct MemoryEncoderParams {
  const void* low;  // [images, height * width, dim], contiguous, `storage`: the frame's features
  const float* logits;  // [objects, logit_height, logit_width], contiguous
  void* out;            // [objects, height * width, memory_dim], contiguous, `out_storage`
  Storage storage, out_storage;
  MemoryEncoderWeights weights;
  int64_t images;                     // `objects`, or 1 if all objects share it
  int64_t objects, height, width;     // tokens
  int64_t logit_height, logit_width;  // pixels
  bool binarize;  // logits become 10 if above zero, else -10; without it 20 * sigmoid - 10
  float epsilon;  // of all norms
};

// Logits are resized to 16 height x 16 width, bilinearly, with align_corners false. Runs with the
// instructions of `isa`, which must not be wider than widest_isa(). An object's result depends
// neither on the number of threads nor on the other objects. Returns false and writes nothing if
// scratch memory cannot be allocated.
bool memory_encoder_cpu(const MemoryEncoderParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
