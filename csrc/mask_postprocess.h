// Low-resolution mask logits to what is kept of a mask: pixel counts for its stability, its box,
// its run lengths. Contract between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

namespace sam2_fast {

struct MaskPostprocessParams {
  const float* logits;            // [count, low_height, low_width], contiguous
  int64_t count;                  // masks
  int64_t low_height, low_width;  // >= 1
  // pixels that the logits are interpolated to, bilinearly, corners not aligned; >= 1
  int64_t height, width;
  // run lengths are of this larger mask, empty outside; canvas pixels < 2^31
  int64_t canvas_height, canvas_width, top, left;
  float low, middle, high;  // thresholds: a pixel is in the mask where its logit is above `middle`
  int64_t* outer;           // [count] pixels above `low`
  int64_t* inner;           // [count] pixels above `high`
  int64_t* boxes;    // [count, 4] first and last column and row of the mask: x0, y0, x1, y1; zeros
                     // for an empty one
  int32_t** runs;    // [count] lengths of zeros and ones in turn, column by column, zeros first; to
                     // be freed with free()
  int64_t* lengths;  // [count] how many
};

// Every instruction set computes the same bits: products and sums are rounded one by one. Returns
// false, with `runs` all null, without memory.
bool mask_postprocess_cpu(const MaskPostprocessParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
