// Checks and launch that are common to kernels that are compiled once per instruction set.
#pragma once

#include <new>
#include <string>

#include "bindings/outputs.h"
#include "bindings/tensor.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

inline Storage storage_of(const View& x) {
  if (x.has_dtype(dl::kFloat, 32)) return Storage::kFloat32;
  if (x.has_dtype(dl::kBfloat, 16)) return Storage::kBfloat16;
  if (x.has_dtype(dl::kFloat, 16)) return Storage::kFloat16;
  refuse(x.name, "float32, bfloat16 or float16", text_of(x.t.dtype));
}

inline Isa isa_of(const std::string& name) {
  const auto widest = static_cast<int32_t>(widest_isa());
  for (int32_t i = 0; i <= widest; ++i) {
    if (name == kIsaNames[i]) return static_cast<Isa>(i);
  }
  refuse("isa", std::string("an instruction set up to ") + kIsaNames[widest], name);
}

inline void require_contiguous_on_cpu(const View& x) {
  x.require_cpu();
  x.require_contiguous();
}

// The first dimension of x must be 1, shared by all objects, or the number of objects.
inline void require_one_or_each(const View& x, int64_t objects) {
  const int64_t count = x.t.shape[0];
  if (count == 1 || count == objects) return;
  refuse(x.name, "1 image or one for each of " + std::to_string(objects) + " objects",
         std::to_string(count));
}

// The data of a contiguous float32 tensor, which must have this shape.
inline float* floats(const View& x, std::initializer_list<int64_t> shape) {
  if (!x.has_shape(shape) || !x.has_dtype(dl::kFloat, 32)) {
    refuse(x.name, text_of_sizes(shape) + " float32", x.shape_and_dtype());
  }
  return x.data<float>();
}

// Runs a kernel without the GIL. Throws std::bad_alloc (MemoryError) if the kernel returns false.
template <class Params>
void run_on_cpu(bool (*kernel)(const Params&, int, Isa), const Params& params, int num_threads,
                const std::string& isa_name) {
  const Isa isa = isa_of(isa_name);
  require_threads(num_threads);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = kernel(params, num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace sam2_fast
