// One module; each stem of CMakeLists.txt registers its functions.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "csrc/cpu/isa.h"

namespace py = pybind11;

namespace sam2_fast {
#define SAM2_FAST_REGISTER(stem) void register_##stem(py::module_& module);
#include "registrations.inc"  // a line for each stem, written by CMake
#undef SAM2_FAST_REGISTER
}  // namespace sam2_fast

namespace {

py::list architectures() {
  py::list found;
#ifdef SAM2_FAST_WITH_CUDA
  std::istringstream words(SAM2_FAST_ARCHITECTURES);
  for (std::string word; words >> word;) found.append(word);
#endif
  return found;
}

const char* cpu_isa() { return sam2_fast::kIsaNames[static_cast<int>(sam2_fast::widest_isa())]; }

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of sam2_fast. Private: use sam2_fast.ops.";
  module.attr("__version__") = SAM2_FAST_VERSION;
  module.def("cuda_architectures", &architectures,
             "CUDA targets that were built, as CMake names them; empty without CUDA.");
  module.def("cpu_isa", &cpu_isa,
             "The widest instruction set of this CPU that kernels distinguish.");
#ifdef _OPENMP
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
#define SAM2_FAST_REGISTER(stem) sam2_fast::register_##stem(module);
#include "registrations.inc"
#undef SAM2_FAST_REGISTER
}
