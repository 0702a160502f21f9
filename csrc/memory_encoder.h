// The memory encoder: a mask, brought to 16 times the frame's tokens and convolved down to them,
// is added to the frame's features; ConvNeXt blocks and a projection make a memory map of both.
// Contract between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

// 3 x 3 of stride 2 with a border of zeros, layer norm over the channels, GELU.
struct MaskConvolutionWeights {
  const void* weight;  // [channels, 9 * channels before], columns by place (dy, dx), then channel
  const float* bias;   // [channels]
  Norm norm;
  int64_t channels;
};

// 7 x 7 with a border of zeros.
struct DepthwiseWeights {
  const float* weight;  // [dim, 49], places (dy, dx)
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
  const void* low;      // [images, height * width, dim], contiguous, `storage`
  const float* logits;  // [objects, logit_height, logit_width], contiguous
  void* out;            // [objects, height * width, memory_dim], contiguous, `out_storage`
  Storage storage, out_storage;
  MemoryEncoderWeights weights;
  int64_t images;                     // 1, shared by the objects, or as many as objects
  int64_t objects, height, width;     // tokens
  int64_t logit_height, logit_width;  // pixels
  bool binarize;  // logits above zero count as 10, others as -10; else 20 * sigmoid - 10
  float epsilon;  // of all norms
};

// Logits are resized to 16 height x 16 width, bilinear with align_corners false. Runs with the
// instructions of `isa`, which must not be wider than widest_isa(). Each object's arithmetic is the
// same for any number of threads and whatever the other objects. Returns false, with nothing
// written, without scratch memory.
bool memory_encoder_cpu(const MemoryEncoderParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
