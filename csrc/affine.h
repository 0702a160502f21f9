// y = x * weight + bias by channel. Contract between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct AffineWeights {
  int64_t channels;
  const float* weight;  // [channels]
  const float* bias;    // [channels]
};

struct AffineParams {
  AffineWeights weights;
  const void* x;  // [rows, weights.channels], contiguous, `storage`
  void* out;      // [rows, weights.channels], contiguous, `storage`; may be x
  Storage storage;
  int64_t rows;
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each number's
// arithmetic is the same for any number of threads. Returns true: it needs no scratch memory.
bool affine_cpu(const AffineParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
