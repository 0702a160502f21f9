// One block of the Hiera trunk: norm, windowed or global attention, residual, norm, MLP, residual.
// Interface between the binding and the kernel; uses neither torch nor Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct HieraBlockWeights {
  Norm norm1;                    // [dim]
  Linear qkv;                    // dim -> 3 * dim_out
  Linear proj;                   // dim_out -> dim_out
  Norm norm2;                    // [dim_out]
  Linear fc1, fc2;               // dim_out -> hidden -> dim_out
  Linear shortcut;               // dim -> dim_out; null unless queries are pooled
  Storage storage;               // of the linear layers' weights
  int64_t dim, dim_out, hidden;  // channels; all even
};

struct HieraBlockParams {
  const void* x;    // [batch, height, width, dim], contiguous, `storage`
  void* out;        // [batch, height, width, dim_out], or [batch, height / 2, width / 2, dim_out]
                    // with pooling; contiguous, `storage`
  Storage storage;  // of x and out
  HieraBlockWeights weights;
  int64_t batch, height, width;
  int64_t heads;   // each has dim_out / heads channels, an even number
  int64_t window;  // tokens along a side; 0: global attention, which excludes pooling
  bool pool;       // queries and shortcut are max-pooled 2 x 2; height, width and window are even
  float epsilon;   // of the norms
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). The result does
// not depend on the number of threads. Returns false and writes nothing if scratch memory cannot be
// allocated.
bool hiera_block_cpu(const HieraBlockParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
