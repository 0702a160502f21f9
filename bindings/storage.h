// What kernels that are compiled once per instruction set ask of every call.
#pragma once

#include <string>

#include "bindings/tensor.h"
#include "csrc/cpu/isa.h"
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
  refuse("isa", std::string("an instruction set up to ") + kIsaNames[static_cast<int32_t>(widest_isa())], name);
}

}  // namespace sam2_fast
