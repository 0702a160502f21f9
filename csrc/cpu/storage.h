// How numbers lie in a tensor.
#pragma once

#include <cstdint>

namespace sam2_fast {

enum class Storage : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
constexpr const char* kStorageNames[] = {"float32", "bfloat16", "float16"};

}  // namespace sam2_fast
