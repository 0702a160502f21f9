// Weights of layers in torch's layout.
#pragma once

namespace sam2_fast {

struct Linear {
  const void* weight;  // [output channels, input channels], contiguous, in the op's matrix storage
  const float* bias;   // [output channels]
};

struct Norm {
  const float *weight, *bias;  // [channels]
};

}  // namespace sam2_fast
