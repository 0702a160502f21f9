// The door: one module, every stem registers its functions.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "csrc/cpu/isa.h"

namespace py = pybind11;

namespace sam2_fast {
void register_connected_components(py::module_& module);
void register_fingerprint(py::module_& module);
void register_hiera_block(py::module_& module);
void register_mask_decoder(py::module_& module);
void register_mask_postprocess(py::module_& module);
void register_memory_attention(py::module_& module);
void register_memory_encoder(py::module_& module);
void register_preprocess(py::module_& module);
void register_rope_attention(py::module_& module);
void register_window_attention(py::module_& module);
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
  sam2_fast::register_connected_components(module);
  sam2_fast::register_fingerprint(module);
  sam2_fast::register_hiera_block(module);
  sam2_fast::register_mask_decoder(module);
  sam2_fast::register_mask_postprocess(module);
  sam2_fast::register_memory_attention(module);
  sam2_fast::register_memory_encoder(module);
  sam2_fast::register_preprocess(module);
  sam2_fast::register_rope_attention(module);
  sam2_fast::register_window_attention(module);
}
