// Checks the arguments of the kernels in csrc/mask_postprocess.h and runs them.
#include "csrc/mask_postprocess.h"

#include <cstdlib>
#include <vector>

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

int64_t* integers(const View& x, std::initializer_list<int64_t> shape) {
  if (!x.has_shape(shape) || !x.has_dtype(dl::kInt, 64)) {
    refuse(x.name, text_of_sizes(shape) + " int64", x.shape_and_dtype());
  }
  return x.data<int64_t>();
}

std::string pixels(int64_t height, int64_t width) {
  return std::to_string(height) + " x " + std::to_string(width);
}

void check_sizes(const MaskPostprocessParams& p) {
  constexpr int64_t kMax = (int64_t{1} << 31) - 1;
  if (p.low_height < 1 || p.low_width < 1 || p.height < 1 || p.width < 1) {
    refuse("logits, size", "1 pixel or more",
           pixels(p.low_height, p.low_width) + ", " + pixels(p.height, p.width));
  }
  if (p.low_height > kMax / p.low_width) {
    refuse("logits", "fewer than 2^31 values a mask", pixels(p.low_height, p.low_width));
  }
  if (p.top < 0 || p.left < 0 || p.height > p.canvas_height - p.top ||
      p.width > p.canvas_width - p.left) {
    refuse("canvas",
           "room for the mask of " + pixels(p.height, p.width) + " at " + pixels(p.top, p.left),
           pixels(p.canvas_height, p.canvas_width));
  }
  if (p.canvas_height > kMax / p.canvas_width) {
    refuse("canvas", "fewer than 2^31 pixels", pixels(p.canvas_height, p.canvas_width));
  }
}

py::list run(py::handle logits_object, int64_t height, int64_t width, int64_t canvas_height,
             int64_t canvas_width, int64_t top, int64_t left, float low_threshold, float threshold,
             float high_threshold, py::handle outer_object, py::handle inner_object,
             py::handle boxes_object, int num_threads, const std::string& isa_name) {
  const View logits("logits", logits_object), outer("outer", outer_object);
  const View inner("inner", inner_object), boxes("boxes", boxes_object);
  for (const View* view : {&logits, &outer, &inner, &boxes}) require_contiguous_on_cpu(*view);
  logits.require_dimensions(3);
  MaskPostprocessParams params{};
  params.count = logits.t.shape[0];
  params.low_height = logits.t.shape[1];
  params.low_width = logits.t.shape[2];
  params.logits = floats(logits, {params.count, params.low_height, params.low_width});
  params.height = height;
  params.width = width;
  params.canvas_height = canvas_height;
  params.canvas_width = canvas_width;
  params.top = top;
  params.left = left;
  params.low_threshold = low_threshold;
  params.threshold = threshold;
  params.high_threshold = high_threshold;
  check_sizes(params);
  params.outer = integers(outer, {params.count});
  params.inner = integers(inner, {params.count});
  params.boxes = integers(boxes, {params.count, 4});
  require_output(outer, {&logits, &inner, &boxes});
  require_output(inner, {&logits, &boxes});
  require_output(boxes, {&logits});
  std::vector<int32_t*> runs(static_cast<size_t>(params.count), nullptr);
  std::vector<int64_t> lengths(static_cast<size_t>(params.count), 0);
  params.runs = runs.data();
  params.lengths = lengths.data();
  if (params.count > 0) run_on_cpu(&mask_postprocess_cpu, params, num_threads, isa_name);
  py::list encoded_runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    encoded_runs.append(py::bytes(reinterpret_cast<const char*>(runs[i]),
                                  sizeof(int32_t) * static_cast<size_t>(lengths[i])));
    std::free(runs[i]);
  }
  return encoded_runs;
}

}  // namespace

void register_mask_postprocess(py::module_& module) {
  module.def("mask_postprocess", &run, py::arg("logits"), py::arg("height"), py::arg("width"),
             py::arg("canvas_height"), py::arg("canvas_width"), py::arg("top"), py::arg("left"),
             py::arg("low_threshold"), py::arg("threshold"), py::arg("high_threshold"),
             py::arg("outer"), py::arg("inner"), py::arg("boxes"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
