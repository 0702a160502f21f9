// Attention inside windows of a grid of tokens, as Hiera has it. Contract between bindings and
// kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct WindowAttentionParams {
  const void* qkv;  // [batch, height, width, 3 * heads * head_dim], contiguous, `storage`: queries,
                    // keys, values; then head, then channel
  const float* pad;  // [3 * heads * head_dim]: a token outside the grid, for windows that stick out
  void* out;  // [batch, height, width, heads * head_dim], where pooled [batch, height / 2, width /
              // 2, ...], contiguous, `storage`
  Storage storage;
  int64_t batch, height, width;  // tokens
  int64_t heads, head_dim;       // head_dim: channels, even
  int64_t window;                // tokens along a side; 0: every token attends to all
  bool pool;                     // queries are max-pooled 2 x 2; height, width and window are even
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each query's
// arithmetic is the same for any number of threads. Returns false, with nothing written, if scratch
// memory cannot be had.
bool window_attention_cpu(const WindowAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
