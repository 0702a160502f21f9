// The mask decoder: prompt tokens and a frame's tokens attend to each other, then the frame is
// upscaled and each mask token predicts its mask. Contract between bindings and kernels. No torch,
// no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct AttentionWeights {
  Linear q, k, v, out;  // dim -> inner, inner -> dim
};

struct TwoWayLayerWeights {
  AttentionWeights self_attention;  // of the prompt tokens; inner width dim
  Norm norm1;                       // [dim], as all four
  AttentionWeights token_to_image;  // inner width dim / 2
  Norm norm2;
  Linear fc1, fc2;  // dim -> hidden -> dim, ReLU between
  Norm norm3, norm4;
  AttentionWeights image_to_token;  // inner width dim / 2
};

struct MlpWeights {
  Linear linear1, linear2, linear3;  // ReLU between
};

struct MaskDecoderWeights {
  TwoWayLayerWeights layers[2];
  AttentionWeights final_attention;  // tokens to image, inner width dim / 2
  Norm final_norm;                   // [dim]
  Linear up1;    // dim -> 4 * dim / 4: rows by place in the 2 x 2 cell (dy, dx), then channel; bias
                 // [dim / 4]
  Norm up_norm;  // [dim / 4]
  Linear up2;    // dim / 4 -> 4 * dim / 8, likewise; bias [dim / 8]
  MlpWeights iou;                  // dim -> iou_hidden -> iou_hidden -> iou_values, then a sigmoid
  const MlpWeights* masks;         // [num_masks] hypernetworks: dim -> dim -> dim -> dim / 8
  Storage storage;                 // of the linear layers' weights
  int64_t num_masks;               // >= 1
  int64_t dim, hidden;             // channels; dim a multiple of 16, hidden even
  int64_t iou_hidden, iou_values;  // channels, an even number; values
};

struct MaskDecoderParams {
  const void* image;  // [images, height * width, dim], contiguous, `storage`: fused features plus
                      // the embedding of a mask hint
  const void* mid;    // [frames, 2 height, 2 width, dim / 4], contiguous, `storage`
  const void* high;   // [frames, 4 height, 4 width, dim / 8], contiguous, `storage`
  Storage storage;    // of image, mid and high
  MaskDecoderWeights weights;
  const float* position;   // [height * width, dim]: of the frame's tokens
  const float* prompts;    // [objects, prompt_tokens, dim]
  const uint8_t* present;  // [objects, prompt_tokens], zero for tokens that do not exist; null: all
                           // do. The first first_mask_token + num_masks always do
  float* logits;   // [objects, num_masks, 4 height, 4 width]; where `best`, [objects, 1, ...]
  float* quality;  // [objects, iou_values]: predicted IoU
  float* tokens;   // [objects, prompt_tokens, dim]: what the prompts became; zero if not present
  int64_t images, frames;  // 1, shared by the objects, or as many as objects
  int64_t objects, prompt_tokens;
  int64_t first_mask_token;  // mask m is predicted by token first_mask_token + m
  int64_t iou_token;         // predicts IoU: value i that of token iou_token + 1 + i
  bool best;  // only the best of an object's masks: the first of the largest quality, NaN
              // being largest
  int64_t height, width;  // tokens
  int64_t heads;          // dim / 2 / heads an even number, at most 64
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each object's
// arithmetic is the same for any number of threads and whatever the other objects. Returns false,
// with nothing written, without scratch memory.
bool mask_decoder_cpu(const MaskDecoderParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
