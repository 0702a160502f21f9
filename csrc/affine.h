// y = x * weight + bias, by channel. Interface between the binding and the kernels; uses neither
// torch nor Python.
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

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). The result does
// not depend on the number of threads. Always returns true, because no scratch memory is allocated.
bool affine_cpu(const AffineParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
