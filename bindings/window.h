// Checks of the window argument of attention kernels.
#pragma once

#include <string>

#include "bindings/tensor.h"

namespace sam2_fast {

constexpr int64_t kMaxWindow = 64;  // tokens along a side

// A window of 0 is global attention.
inline void require_window(int64_t window) {
  if (window >= 0 && window <= kMaxWindow) return;
  refuse("window", "0 to " + std::to_string(kMaxWindow), std::to_string(window));
}

// Requirements of 2 x 2 pooling. x: [batch, height, width, channels]. min: smallest window, which
// is 0 if global attention is allowed, else 2.
inline void require_even_window(int64_t window, const View& x, int64_t min) {
  const int64_t height = x.t.shape[1], width = x.t.shape[2];
  if (window >= min && window % 2 == 0 && height % 2 == 0 && width % 2 == 0) return;
  refuse("pool", "an even window on an even grid",
         "a window of " + std::to_string(window) + " on " + std::to_string(height) + " x " +
             std::to_string(width) + " tokens");
}

}  // namespace sam2_fast
