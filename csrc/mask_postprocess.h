// From low-resolution mask logits: pixel counts for the stability score, bounding boxes, and run
// lengths. Interface between the binding and the kernel; uses neither torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

namespace sam2_fast {

struct MaskPostprocessParams {
  const float* logits;            // [count, low_height, low_width], contiguous
  int64_t count;                  // masks
  int64_t low_height, low_width;  // >= 1
  // size in pixels to which the logits are interpolated, bilinearly, corners not aligned; >= 1
  int64_t height, width;
  // run lengths describe a canvas of this size that has the mask at (top, left) and is empty
  // elsewhere; canvas pixels < 2^31
  int64_t canvas_height, canvas_width, top, left;
  // a pixel is in the mask if its logit is above `threshold`; the other two are for the counts
  float low_threshold, threshold, high_threshold;
  int64_t* outer;  // [count] pixels above low_threshold
  int64_t* inner;  // [count] pixels above high_threshold
  int64_t* boxes;  // [count, 4] first and last column and row of the mask: x0, y0, x1, y1; zeros
                   // if the mask is empty
  int32_t** runs;  // [count] alternating lengths of zeros and ones, column by column, zeros first;
                   // the caller frees them with free()
  int64_t* lengths;  // [count] number of run lengths
};

// Every instruction set computes the same bits, because each product and each sum is rounded by
// itself. Returns false and leaves null in all of `runs` if memory cannot be allocated.
bool mask_postprocess_cpu(const MaskPostprocessParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
