// A multiplication and an addition for each channel: the template of an op, walked through in
// docs/adding_a_kernel.md. Contract between the bindings and the kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct AffineParams {
  const void* x;        // [rows, channels], contiguous, `storage`
  const float* weight;  // [channels]
  const float* bias;    // [channels]
  void* out;            // [rows, channels], contiguous, `storage`: x * weight + bias, rounded once
  Storage storage;
  int64_t rows, channels;
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Returns false
// where scratch memory is missing, which this kernel needs none of.
bool affine_cpu(const AffineParams& params, int num_threads, Isa isa);

// `storage` is float32; `stream` is a cudaStream_t of the current device. Nothing is synchronised.
// Returns nullptr, or what CUDA said.
const char* affine_cuda(const AffineParams& params, void* stream);

}  // namespace sam2_fast
