// A linear layer as torch stores it.
#pragma once

namespace sam2_fast {

struct Linear {
  const void* weight;  // [rows out, columns in], contiguous, in the storage that the params give
                       // for weights
  const float* bias;   // [rows out]
};

}  // namespace sam2_fast
