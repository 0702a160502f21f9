// Compiled once per instruction set (SAM2_FAST_ISA); the compiler makes vectors of the inner loop.
#include "csrc/affine.h"

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/rows.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// The storage is a constant of the loop, so that no element asks for it.
template <Storage kStorage>
void compute(const AffineParams& params, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t first = row * params.channels;
    for (int64_t c = 0; c < params.channels; ++c) {
      const float x = read(params.x, kStorage, first + c);
      write(params.out, kStorage, first + c, x * params.weight[c] + params.bias[c]);
    }
  }
}

}  // namespace

bool affine(const AffineParams& params, int num_threads) {
  switch (params.storage) {
    case Storage::kFloat32:
      compute<Storage::kFloat32>(params, num_threads);
      break;
    case Storage::kBfloat16:
      compute<Storage::kBfloat16>(params, num_threads);
      break;
    case Storage::kFloat16:
      compute<Storage::kFloat16>(params, num_threads);
      break;
  }
  return true;
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(affine, AffineParams)

}  // namespace sam2_fast
