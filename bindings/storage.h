// What kernels that are compiled once per instruction set ask of every call.
#pragma once

#include <string>
#include <vector>

#include "bindings/tensor.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/linear.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

inline Storage storage_of(const View& x) {
  const bool plain = x.t.dtype.lanes == 1;
  if (plain && x.t.dtype.code == dl::kFloat && x.t.dtype.bits == 32) return Storage::kFloat32;
  if (plain && x.t.dtype.code == dl::kBfloat && x.t.dtype.bits == 16) return Storage::kBfloat16;
  if (plain && x.t.dtype.code == dl::kFloat && x.t.dtype.bits == 16) return Storage::kFloat16;
  refuse(x.name, "float32, bfloat16 or float16", "another dtype");
}

inline Isa isa_of(const std::string& name) {
  for (int32_t i = 0; i <= static_cast<int32_t>(widest_isa()); ++i) {
    if (name == kIsaNames[i]) return static_cast<Isa>(i);
  }
  refuse("isa",
         std::string("an instruction set up to ") + kIsaNames[static_cast<int32_t>(widest_isa())],
         name);
}

inline void want_cpu(const View& x) {
  if (x.t.device.type != dl::kCpu)
    refuse(x.name, "a tensor on the CPU", "device type " + std::to_string(x.t.device.type));
  x.want_contiguous();
}

inline const float* floats(const View& x, std::initializer_list<int64_t> shape) {
  bool fits = x.t.ndim == static_cast<int32_t>(shape.size()) && storage_of(x) == Storage::kFloat32;
  std::string wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    fits = fits && x.t.shape[i] == shape.begin()[i];
    wanted += (i ? ", " : "[") + std::to_string(shape.begin()[i]);
  }
  if (!fits) refuse(x.name, wanted + "] float32", "another shape or dtype");
  return x.data<const float>();
}

// Parameters in a fixed order: vectors in float32, matrices in a dtype of their own. `names`
// repeats every `period` tensors.
struct Weights {
  std::vector<View> views;

  Weights(const py::sequence& tensors, const char* const* names, size_t period) {
    const size_t count = py::len(tensors);
    views.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      views.emplace_back(names[i % period], py::object(tensors[i]));
      want_cpu(views.back());
    }
  }

  const float* vector(size_t i, int64_t channels) const { return floats(views[i], {channels}); }

  // The matrix at i and the bias after it; `like`: the matrix that tells the dtype of all.
  Linear linear(size_t i, int64_t rows, int64_t columns, size_t like = 2) const {
    const View& x = views[i];
    if (x.t.ndim != 2 || x.t.shape[0] != rows || x.t.shape[1] != columns) {
      refuse(x.name, "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]",
             "another shape");
    }
    if (storage_of(x) != storage_of(views[like]))
      refuse(x.name, std::string("the dtype of ") + views[like].name, "another dtype");
    return {x.data<const void>(), vector(i + 1, rows)};
  }
};

}  // namespace sam2_fast
