// 8-connected components of binary masks: their labels and areas, and the pixels of small
// components. Interface between the binding and the kernels; uses neither torch nor Python.
#pragma once

#include <cstdint>

namespace sam2_fast {

struct ConnectedComponentsParams {
  const uint8_t* masks;  // [count, height, width], non-zero is foreground, contiguous
  int32_t* labels;  // [count, height, width]: 1 + row-major index of the component's first pixel; 0
                    // on background
  int32_t* areas;   // [count, height, width], pixels of the component; 0 on background
  int64_t count;    // masks
  int32_t height;   // pixels; height * width < 2^31
  int32_t width;    // pixels
};

struct SmallComponentsParams {
  const uint8_t* masks;  // [count, height, width], non-zero is foreground, contiguous
  uint8_t* small;    // [count, height, width]: 1 where the pixel's component has at most max_area
                     // pixels, else 0
  int64_t count;     // masks
  int32_t height;    // pixels; height * width < 2^31
  int32_t width;     // pixels
  int32_t max_area;  // pixels, >= 1
};

// The largest max_area that the CUDA kernel supports. With this area its tile and halo take 32 KB
// of shared memory.
constexpr int32_t kMaxLocalArea = 16;

void connected_components_cpu(const ConnectedComponentsParams& params, int num_threads);
void small_components_cpu(const SmallComponentsParams& params, int num_threads);

// `stream` is a cudaStream_t of the current device. The launchers do not synchronize with the host.
// They return nullptr or CUDA's error text.
const char* connected_components_cuda(const ConnectedComponentsParams& params, void* stream);
const char* small_components_cuda(const SmallComponentsParams& params, void* stream);

}  // namespace sam2_fast
