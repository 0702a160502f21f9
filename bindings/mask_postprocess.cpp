// Checks and launch of csrc/mask_postprocess.h.
#include "csrc/mask_postprocess.h"

#include <cstdlib>

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

int64_t* integers(const View& x, std::initializer_list<int64_t> shape) {
  bool fits = x.t.ndim == static_cast<int32_t>(shape.size()) && x.t.dtype.code == dl::kInt &&
              x.t.dtype.bits == 64 && x.t.dtype.lanes == 1;
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = x.t.shape[i] == shape.begin()[i];
  if (!fits) refuse(x.name, "int64, a row a mask", "another shape or dtype");
  return x.data<int64_t>();
}

py::list run(py::handle logits_object, int64_t height, int64_t width, int64_t canvas_height,
             int64_t canvas_width, int64_t top, int64_t left, float low, float middle, float high,
             py::handle outer_object, py::handle inner_object, py::handle boxes_object,
             int num_threads, const std::string& isa_name) {
  const View logits("logits", logits_object), outer("outer", outer_object),
      inner("inner", inner_object), boxes("boxes", boxes_object);
  for (const View* x : {&logits, &outer, &inner, &boxes}) want_cpu(*x);
  if (logits.t.ndim != 3) refuse("logits", "3 dimensions", std::to_string(logits.t.ndim));
  const int64_t count = logits.t.shape[0], low_height = logits.t.shape[1],
                low_width = logits.t.shape[2];
  const float* const data = floats(logits, {count, low_height, low_width});
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  if (low_height < 1 || low_width < 1 || height < 1 || width < 1)
    refuse("logits, size", "a pixel or more", "none");
  if (low_height > kMost / low_width) refuse("logits", "fewer than 2^31 values a mask", "more");
  if (top < 0 || left < 0 || height > canvas_height - top || width > canvas_width - left)
    refuse("canvas", "room for the mask", "none");
  if (canvas_height > kMost / canvas_width) refuse("canvas", "fewer than 2^31 pixels", "more");
  std::vector<int32_t*> runs(static_cast<size_t>(count), nullptr);
  std::vector<int64_t> lengths(static_cast<size_t>(count), 0);
  const MaskPostprocessParams params{data,
                                     count,
                                     low_height,
                                     low_width,
                                     height,
                                     width,
                                     canvas_height,
                                     canvas_width,
                                     top,
                                     left,
                                     low,
                                     middle,
                                     high,
                                     integers(outer, {count}),
                                     integers(inner, {count}),
                                     integers(boxes, {count, 4}),
                                     runs.data(),
                                     lengths.data()};
  const Isa isa = isa_of(isa_name);
  bool done = true;
  if (count > 0) {
    py::gil_scoped_release release;
    done = mask_postprocess_cpu(params, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
  py::list found;
  for (size_t i = 0; i < runs.size(); ++i) {
    found.append(py::bytes(reinterpret_cast<const char*>(runs[i]),
                           sizeof(int32_t) * static_cast<size_t>(lengths[i])));
    std::free(runs[i]);
  }
  return found;
}

}  // namespace

void register_mask_postprocess(py::module_& module) {
  module.def("mask_postprocess", &run, py::arg("logits"), py::arg("height"), py::arg("width"),
             py::arg("canvas_height"), py::arg("canvas_width"), py::arg("top"), py::arg("left"),
             py::arg("low"), py::arg("middle"), py::arg("high"), py::arg("outer"), py::arg("inner"),
             py::arg("boxes"), py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
