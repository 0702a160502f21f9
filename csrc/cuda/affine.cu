// One launch. A thread owns elements that lie a grid apart, so that a warp reads 128 bytes at once.
#include <cuda_runtime.h>

#include "csrc/affine.h"

namespace sam2_fast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // threads stride over the rest

__global__ void affine_kernel(AffineParams p, int64_t total) {
  const auto* const x = static_cast<const float*>(p.x);
  auto* const out = static_cast<float*>(p.out);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += stride) {
    const int64_t channel = i % p.channels;
    out[i] = x[i] * p.weight[channel] + p.bias[channel];
  }
}

}  // namespace

const char* affine_cuda(const AffineParams& p, void* stream) {
  const int64_t total = p.rows * p.channels;
  if (total == 0) return nullptr;
  const int64_t wanted = (total + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks);
  affine_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, total);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sam2_fast
