// Checks the arguments of the kernels in csrc/connected_components.h and runs them.
#include "csrc/connected_components.h"

#include <limits>

#include "bindings/outputs.h"
#include "bindings/tensor.h"

#ifdef SAM2_FAST_WITH_CUDA
#include "bindings/device_guard.h"
#endif

namespace sam2_fast {
namespace {

struct Shape {
  int64_t count;
  int32_t height, width;
};

Shape check_masks(const View& masks) {
  if (masks.t.ndim != 3) refuse(masks.name, "[N, H, W]", text_of_sizes(masks.sizes()));
  masks.require_byte();
  masks.require_contiguous();
  const int64_t height = masks.t.shape[1], width = masks.t.shape[2];
  if (height != 0 && width > std::numeric_limits<int32_t>::max() / height) {
    refuse(masks.name, "H * W < 2^31", text_of_sizes(masks.sizes()));
  }
  return {masks.t.shape[0], static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

void check_output(const View& out, const View& masks) {
  out.require_shape({masks.t.shape[0], masks.t.shape[1], masks.t.shape[2]});
  out.require_contiguous();
  out.require_device_of(masks);
}

template <typename Params>
void launch(const View& masks, const Params& params, int num_threads,
            void (*on_cpu)(const Params&, int),
            [[maybe_unused]] const char* (*on_cuda)(const Params&, void*)) {
  if (masks.t.device.type == dl::kCpu) {
    require_threads(num_threads);
    py::gil_scoped_release release;
    on_cpu(params, num_threads);
    return;
  }
#ifdef SAM2_FAST_WITH_CUDA
  if (masks.t.device.type == dl::kCuda) {
    const DeviceGuard guard(masks.t.device.id);
    const char* error = on_cuda(params, masks.stream());
    if (error != nullptr) {
      throw std::runtime_error(masks.name + ": CUDA launch failed: " + error);
    }
    return;
  }
#endif
  refuse(masks.name, "a tensor on a device for which this build has kernels",
         text_of(masks.t.device));
}

void components(py::handle masks_object, py::handle labels_object, py::handle areas_object,
                int num_threads) {
  const View masks("masks", masks_object);
  const View labels("labels", labels_object), areas("areas", areas_object);
  const Shape s = check_masks(masks);
  for (const View* out : {&labels, &areas}) {
    check_output(*out, masks);
    out->require_int32();
  }
  require_output(labels, {&masks, &areas});
  require_output(areas, {&masks});
  const ConnectedComponentsParams params{masks.data<const uint8_t>(),
                                         labels.data<int32_t>(),
                                         areas.data<int32_t>(),
                                         s.count,
                                         s.height,
                                         s.width};
#ifdef SAM2_FAST_WITH_CUDA
  launch(masks, params, num_threads, &connected_components_cpu, &connected_components_cuda);
#else
  launch<ConnectedComponentsParams>(masks, params, num_threads, &connected_components_cpu, nullptr);
#endif
}

void small(py::handle masks_object, py::handle small_object, int32_t max_area, int num_threads) {
  const View masks("masks", masks_object), out("small", small_object);
  const Shape s = check_masks(masks);
  check_output(out, masks);
  out.require_byte();
  require_output(out, {&masks});
  if (max_area < 1) refuse("max_area", "1 or more pixels", std::to_string(max_area));
  if (masks.t.device.type == dl::kCuda && max_area > kMaxLocalArea) {
    refuse("max_area", "at most " + std::to_string(kMaxLocalArea) + " on CUDA",
           std::to_string(max_area));
  }
  const SmallComponentsParams params{
      masks.data<const uint8_t>(), out.data<uint8_t>(), s.count, s.height, s.width, max_area};
#ifdef SAM2_FAST_WITH_CUDA
  launch(masks, params, num_threads, &small_components_cpu, &small_components_cuda);
#else
  launch<SmallComponentsParams>(masks, params, num_threads, &small_components_cpu, nullptr);
#endif
}

}  // namespace

void register_connected_components(py::module_& module) {
  module.attr("max_local_area") = kMaxLocalArea;
  module.def("connected_components", &components, py::arg("masks"), py::arg("labels"),
             py::arg("areas"), py::arg("num_threads"));
  module.def("small_components", &small, py::arg("masks"), py::arg("small"), py::arg("max_area"),
             py::arg("num_threads"));
}

}  // namespace sam2_fast
