// The mask decoder: prompt tokens and a frame's tokens attend to each other, then the frame is
// upscaled and each mask token draws its mask. Contract between bindings and kernels. No torch, no
// Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/linear.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct Norm {
  const float *weight, *bias;  // [channels]
};

struct Attention {
  Linear q, k, v, out;  // dim -> inner, inner -> dim
};

struct TwoWayLayer {
  Attention self, to_image, to_tokens;  // inner width dim, dim / 2, dim / 2
  Norm norm1, norm2, norm3, norm4;
  Linear fc1, fc2;  // dim -> hidden -> dim, ReLU between
};

struct MaskDecoderParams {
  const void* image;  // [images, height * width, dim], contiguous, `storage`: fused features plus
                      // the embedding of a mask hint
  const void* mid;    // [frames, 2 height, 2 width, dim / 4], contiguous, `storage`
  const void* high;   // [frames, 4 height, 4 width, dim / 8], contiguous, `storage`
  Storage storage;    // of image, mid and high
  Storage weights;    // of the linear layers' weights
  const float* position;   // [height * width, dim]: of the frame's tokens
  const float* prompts;    // [objects, prompt_tokens, dim]
  const uint8_t* present;  // [objects, prompt_tokens], zero for tokens that do not exist; null: all
                           // do. The first 2 + masks always do
  float* logits;           // [objects, masks, 4 height, 4 width]; where `best`, [objects, 1, ...]
  float* quality;          // [objects, iou_values]: predicted IoU
  float* tokens;  // [objects, prompt_tokens, dim]: what the prompts became; zero where not present
  TwoWayLayer layers[2];
  Attention last;  // tokens to image, inner width dim / 2
  Norm last_norm;
  Linear up1;    // dim -> 4 * dim / 4: rows by place in the 2 x 2 cell (dy, dx), then channel; bias
                 // [dim / 4]
  Norm up_norm;  // [dim / 4]
  Linear up2;    // dim / 4 -> 4 * dim / 8, likewise; bias [dim / 8]
  const Linear* hyper;  // [masks][3]: dim -> dim -> dim -> dim / 8, ReLU between
  Linear iou[3];  // dim -> iou_hidden -> iou_hidden -> iou_values, ReLU between, then a sigmoid
  int64_t images, frames;  // 1, shared by the objects, or as many as objects
  int64_t objects, prompt_tokens;
  int64_t masks, first_mask_token;  // mask m is drawn by token first_mask_token + m
  int64_t iou_token;  // says how good masks are: value i that of token iou_token + 1 + i
  int64_t iou_hidden, iou_values;  // channels, an even number; values
  bool best;  // draw of an object's masks the best alone: the first of the largest quality, NaN
              // being largest
  int64_t height, width;  // tokens
  int64_t dim, hidden;    // channels; dim a multiple of 16
  int64_t heads;          // dim / 2 / heads an even number
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each object's
// arithmetic is the same for any number of threads and whatever the other objects. Returns false,
// with nothing written, without scratch memory.
bool mask_decoder_cpu(const MaskDecoderParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
