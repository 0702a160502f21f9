// Attention within windows of a grid of tokens, as in Hiera. Interface between the binding and the
// kernel; uses neither torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct WindowAttentionParams {
  const void* qkv;  // [batch, height, width, 3 * heads * head_dim], contiguous, `storage`: channels
                    // ordered by query, key, value, then head
  const float* pad;  // [3 * heads * head_dim]: qkv of a token outside the grid, for windows that
                     // extend beyond it
  void* out;         // [batch, height, width, heads * head_dim], or [batch, height / 2, width / 2,
                     // ...] with pooling; contiguous, `storage`
  Storage storage;
  int64_t batch, height, width;  // tokens
  int64_t heads, head_dim;       // head_dim: channels, even
  int64_t window;                // tokens along a side; 0: global attention
  bool pool;                     // queries are max-pooled 2 x 2; height, width and window are even
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). The result does
// not depend on the number of threads. Returns false and writes nothing if scratch memory cannot be
// allocated.
bool window_attention_cpu(const WindowAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
