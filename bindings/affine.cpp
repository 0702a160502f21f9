// Checks and launch of csrc/affine.h.
#include "csrc/affine.h"

#include "bindings/storage.h"

#ifdef SAM2_FAST_WITH_CUDA
#include "bindings/device_guard.h"
#endif

namespace sam2_fast {
namespace {

void run(py::handle x_object, py::handle weight_object, py::handle bias_object,
         py::handle out_object, int num_threads, const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  const View weight("weight", weight_object), bias("bias", bias_object);
  x.want_dimensions(2);
  out.want_shape({x.t.shape[0], x.t.shape[1]});
  out.want_dtype_of(x);
  for (const View* view : {&x, &out, &weight, &bias}) {
    view->want_contiguous();
    view->want_device_of(x);
  }
  AffineParams params{};
  params.storage = storage_of(x);
  params.x = x.data<const void>();
  params.weight = floats(weight, {x.t.shape[1]});
  params.bias = floats(bias, {x.t.shape[1]});
  params.out = out.data<void>();
  params.rows = x.t.shape[0];
  params.channels = x.t.shape[1];
#ifdef SAM2_FAST_WITH_CUDA
  if (x.t.device.type == dl::kCuda) {
    if (params.storage != Storage::kFloat32) refuse("x", "float32 on CUDA", text_of(x.t.dtype));
    const DeviceGuard guard(x.t.device.id);
    const char* error = affine_cuda(params, x.stream());
    if (error != nullptr) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
    return;
  }
#endif
  x.want_cpu();
  run_on_cpu(&affine_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_affine(py::module_& module) {
  module.def("affine", &run, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
