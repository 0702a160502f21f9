// Element types of tensors in memory.
#pragma once

#include <cstdint>

namespace sam2_fast {

enum class Storage : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

}  // namespace sam2_fast
