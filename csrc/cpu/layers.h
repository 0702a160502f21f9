// Weights of layers as torch stores them.
#pragma once

namespace sam2_fast {

struct Linear {
  const void* weight;  // [rows out, columns in], contiguous, in the storage of the op's matrices
  const float* bias;   // [rows out]
};

struct Norm {
  const float *weight, *bias;  // [channels]
};

}  // namespace sam2_fast
