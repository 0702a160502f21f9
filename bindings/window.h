// What kernels that attend in windows ask of the windows.
#pragma once

#include <string>

#include "bindings/tensor.h"

namespace sam2_fast {

constexpr int64_t kMaxWindow = 64;  // tokens along a side

// 0: every token attends to all.
inline void want_window(int64_t window) {
  if (window >= 0 && window <= kMaxWindow) return;
  refuse("window", "0 to " + std::to_string(kMaxWindow), std::to_string(window));
}

// For queries that are pooled 2 x 2. x: [batch, height, width, channels]; `least`: 0 where the
// whole image may be one window, else 2.
inline void want_even_window(int64_t window, const View& x, int64_t least) {
  const int64_t height = x.t.shape[1], width = x.t.shape[2];
  if (window >= least && window % 2 == 0 && height % 2 == 0 && width % 2 == 0) return;
  refuse("pool", "an even window on an even grid",
         "a window of " + std::to_string(window) + " on " + std::to_string(height) + " x " +
             std::to_string(width) + " tokens");
}

}  // namespace sam2_fast
