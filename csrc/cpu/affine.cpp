// Threads share the rows. Four channels are computed at a time, in float32, then the remaining
// ones.
#include "csrc/affine.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/rows.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

void affine_row(const AffineParams& params, int64_t row) {
  const AffineWeights& weights = params.weights;
  const int64_t first = row * weights.channels;  // offset of the row
  int64_t channel = 0;
  for (; channel + 4 <= weights.channels; channel += 4) {
    const Four x = read_four(params.x, params.storage, first + channel);
    const Four weight = read_four(weights.weight, Storage::kFloat32, channel);
    const Four bias = read_four(weights.bias, Storage::kFloat32, channel);
    write_four(params.out, params.storage, first + channel, x * weight + bias);
  }
  for (; channel < weights.channels; ++channel) {
    const float x = read(params.x, params.storage, first + channel);
    const float y = x * weights.weight[channel] + weights.bias[channel];
    write(params.out, params.storage, first + channel, y);
  }
}

}  // namespace

bool affine(const AffineParams& params, int num_threads) {
#pragma omp parallel for num_threads(num_threads)
  for (int64_t row = 0; row < params.rows; ++row) affine_row(params, row);
  return true;
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(affine, AffineParams)

}  // namespace sam2_fast
