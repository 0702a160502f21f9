// One-head attention with an axial rotary position encoding, as memory attention uses it. Contract
// between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct RopeAttentionParams {
  const void* q;     // [batch, queries, dim], contiguous, `storage`
  const void* k;     // [batch, keys, dim], contiguous, `storage`
  const void* v;     // [batch, keys, value_dim], contiguous, `storage`
  const float* cos;  // [queries, dim / 2]: pair (2i, 2i + 1) of token t is rotated by the angle
                     // whose cosine is cos[t][i]
  const float* sin;  // [queries, dim / 2]
  void* out;         // [batch, queries, value_dim], contiguous, `storage`
  Storage storage;
  int64_t batch;      // objects
  int64_t queries;    // tokens, >= 1
  int64_t keys;       // tokens, >= 1; the first keys - unrotated are whole maps of `queries` tokens
  int64_t unrotated;  // tokens at the end of k that have no place in the image (object pointers)
  int32_t dim;        // channels of q and k, even
  int32_t value_dim;  // channels of v
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each query's
// arithmetic is the same for any number of threads. Returns false, with nothing written, if scratch
// memory cannot be had.
bool rope_attention_cpu(const RopeAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
