// One-head attention with axial rotary position encoding, as in memory attention. Interface between
// the binding and the kernel; uses neither torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct RopeAttentionParams {
  const void* q;     // [batch, queries, dim], contiguous, `storage`
  const void* k;     // [batch, keys, dim], contiguous, `storage`
  const void* v;     // [batch, keys, value_dim], contiguous, `storage`
  const float* cos;  // [queries, dim / 2]: cos[t][i] is the cosine of the angle by which the
                     // channel pair (2i, 2i + 1) of token t is rotated
  const float* sin;  // [queries, dim / 2]
  void* out;         // [batch, queries, value_dim], contiguous, `storage`
  Storage storage;
  int64_t batch;      // objects
  int64_t queries;    // tokens, >= 1
  int64_t keys;       // tokens, >= 1; the first keys - unrotated are whole maps of `queries` tokens
  int64_t unrotated;  // tokens at the end of k without a position in the image (object pointers)
  int32_t dim;        // channels of q and k, even
  int32_t value_dim;  // channels of v
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). The result does
// not depend on the number of threads. Returns false and writes nothing if scratch memory cannot be
// allocated.
bool rope_attention_cpu(const RopeAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
