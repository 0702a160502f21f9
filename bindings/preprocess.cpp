// Checks the arguments of the kernels in csrc/preprocess.h and runs them.
#include "csrc/preprocess.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

// Maximum pixels of a side; up to this size positions are exact in float32.
constexpr int64_t kMaxPixels = int64_t{1} << 24;

// The strides of a uint8 tensor of four dimensions, in bytes.
std::vector<int64_t> strides_of(const View& x) {
  if (x.t.strides != nullptr) return {x.t.strides, x.t.strides + 4};
  std::vector<int64_t> strides(4, 1);
  for (int i = 2; i >= 0; --i) strides[i] = strides[i + 1] * x.t.shape[i + 1];
  return strides;
}

void run(py::handle pictures_object, bool bicubic, bool columns_first,
         const std::vector<float>& mean, const std::vector<float>& std_of_values,
         py::handle out_object, int num_threads, const std::string& isa_name) {
  const View pictures("pictures", pictures_object), out("out", out_object);
  pictures.require_cpu();
  require_contiguous_on_cpu(out);
  if (!pictures.has_dtype(dl::kUInt, 8) || pictures.t.ndim != 4 || pictures.t.shape[3] != 3) {
    refuse("pictures", "[B, H, W, 3] uint8", pictures.shape_and_dtype());
  }
  PreprocessParams params{};
  params.count = pictures.t.shape[0];
  params.height = pictures.t.shape[1];
  params.width = pictures.t.shape[2];
  if (out.t.ndim != 4 || out.t.shape[0] != params.count) {
    refuse("out",
           "4 dimensions, as many pictures as the input (" + std::to_string(params.count) + ")",
           out.shape_and_dtype());
  }
  const bool bytes = out.has_dtype(dl::kUInt, 8);
  const int64_t size = out.t.shape[2];
  params.size = size;
  if (bytes && (!bicubic || out.t.shape[1] != size || out.t.shape[3] != 3)) {
    refuse("out", "[B, S, S, 3], for bicubic",
           out.shape_and_dtype() + (bicubic ? " for bicubic" : " for bilinear"));
  }
  if (bytes) {
    params.bytes = out.data<uint8_t>();
  } else {
    params.planes = floats(out, {params.count, 3, size, size});
  }
  for (const int64_t side : {params.height, params.width, size}) {
    if (side >= 1 && side <= kMaxPixels) continue;
    refuse("pictures, out", "sides of 1 to 2^24 pixels", std::to_string(side));
  }
  if (mean.size() != 3 || std_of_values.size() != 3) {
    refuse("mean, std", "three numbers each",
           std::to_string(mean.size()) + " and " + std::to_string(std_of_values.size()));
  }
  std::copy(mean.begin(), mean.end(), params.mean);
  std::copy(std_of_values.begin(), std_of_values.end(), params.std);
  const std::vector<int64_t> strides = strides_of(pictures);
  if (columns_first && (!bicubic || strides[2] != 3 || strides[3] != 1)) {
    refuse("pictures", "packed pixels, for bicubic",
           "strides " + text_of_sizes(strides) + (bicubic ? " for bicubic" : " for bilinear"));
  }
  require_output(out, {&pictures});
  params.pictures = pictures.data<const uint8_t>();
  params.picture_stride = strides[0];
  params.row_stride = strides[1];
  params.column_stride = strides[2];
  params.channel_stride = strides[3];
  params.filter = bicubic ? ResampleFilter::kBicubic : ResampleFilter::kBilinear;
  params.columns_first = columns_first;
  if (params.count > 0) run_on_cpu(&preprocess_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_preprocess(py::module_& module) {
  module.def("preprocess", &run, py::arg("pictures"), py::arg("bicubic"), py::arg("columns_first"),
             py::arg("mean"), py::arg("std"), py::arg("out"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
