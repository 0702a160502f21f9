// Makes a CUDA device current for a scope, then restores the previous one.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sam2_fast {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    if (previous_ != device) check(cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA device: ") + cudaGetErrorString(error));
    }
  }
  int previous_ = 0;
};

}  // namespace sam2_fast
