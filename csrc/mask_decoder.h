// The mask decoder: prompt tokens and image tokens attend to each other, the image is upscaled, and
// each mask token predicts its mask. Interface between the binding and the kernel; uses neither
// torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct AttentionWeights {
  Linear q, k, v, out;  // q, k, v: dim -> inner; out: inner -> dim
};

struct TwoWayLayerWeights {
  AttentionWeights self_attention;  // among the prompt tokens; inner = dim
  Norm norm1;                       // [dim], like the other three norms
  AttentionWeights token_to_image;  // inner = dim / 2
  Norm norm2;
  Linear fc1, fc2;  // dim -> hidden -> dim, ReLU between
  Norm norm3, norm4;
  AttentionWeights image_to_token;  // inner = dim / 2
};

struct MlpWeights {
  Linear linear1, linear2, linear3;  // ReLU between
};

struct MaskDecoderWeights {
  TwoWayLayerWeights layers[2];
  AttentionWeights final_attention;  // from tokens to the image; inner = dim / 2
  Norm final_norm;                   // [dim]
  Linear up1;  // transposed convolution, dim -> 4 * dim / 4: rows ordered by position in the 2 x 2
               // cell (dy, dx), then by channel; bias [dim / 4]
  Norm up_norm;             // [dim / 4]
  Linear up2;               // dim / 4 -> 4 * dim / 8, ordered in the same way; bias [dim / 8]
  MlpWeights iou;           // dim -> iou_hidden -> iou_hidden -> iou_values, then a sigmoid
  const MlpWeights* masks;  // [num_masks] hypernetworks: dim -> dim -> dim -> dim / 8
  Storage storage;          // of the linear layers' weights
  int64_t num_masks;        // >= 1
  int64_t dim, hidden;      // channels; dim a multiple of 16, hidden even
  int64_t iou_hidden, iou_values;  // channels, an even number; predicted IoU values of an object
};

struct MaskDecoderParams {
  const void* image;         // [images, height * width, dim], contiguous, `storage`: fused features
                             // plus the embedding of the mask prompt
  const void* mid_features;  // [frames, 2 height, 2 width, dim / 4], contiguous, `storage`
  const void* high_features;  // [frames, 4 height, 4 width, dim / 8], contiguous, `storage`
  Storage storage;            // of image, mid_features and high_features
  MaskDecoderWeights weights;
  const float* position;   // [height * width, dim]: of the image tokens
  const float* prompts;    // [objects, prompt_tokens, dim]
  const uint8_t* present;  // [objects, prompt_tokens], zero for tokens that do not exist; null if
                           // all exist. The first first_mask_token + num_masks tokens always exist.
  float* logits;   // [objects, num_masks, 4 height, 4 width], or [objects, 1, ...] with `best`
  float* quality;  // [objects, iou_values]: predicted IoU
  float* tokens;   // [objects, prompt_tokens, dim]: the final prompt tokens; zero if not present
  int64_t images, frames;  // each is `objects`, or 1 if all objects share it
  int64_t objects, prompt_tokens;
  int64_t first_mask_token;  // mask m is predicted by token first_mask_token + m
  int64_t iou_token;         // predicts IoU: value i belongs to token iou_token + 1 + i
  bool best;  // predict only the mask of highest predicted IoU: the first of equal ones, where NaN
              // counts as the highest value
  int64_t height, width;  // image tokens
  int64_t heads;          // dim / 2 / heads is an even number, at most 64
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). An object's
// result depends neither on the number of threads nor on the other objects. Returns false and
// writes nothing if scratch memory cannot be allocated.
bool mask_decoder_cpu(const MaskDecoderParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
