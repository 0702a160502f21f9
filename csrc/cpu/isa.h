// The instruction sets for which CPU kernels are compiled, each to a separate object file.
#pragma once

#include <cstdint>

namespace sam2_fast {

enum class Isa : int32_t {
  kPortable = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Bf16 = 3
};  // each set includes the ones before it
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

// The widest set that this processor supports. Call it from code that is compiled without any of
// them.
inline Isa widest_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
#else
  return Isa::kPortable;
#endif
}

}  // namespace sam2_fast
