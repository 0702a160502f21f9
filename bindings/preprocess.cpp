// Checks and launch of csrc/preprocess.h.
#include "csrc/preprocess.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 24;  // a side; positions are exact in float32

bool is_bytes(const View& x) {
  return x.t.dtype.code == dl::kUInt && x.t.dtype.bits == 8 && x.t.dtype.lanes == 1;
}

// Bytes between neighbours along each of four dimensions, where the tensor is of bytes.
std::vector<int64_t> strides_of(const View& x) {
  std::vector<int64_t> strides(4, 1);
  for (int i = 3; i >= 0; --i)
    strides[i] = x.t.strides ? x.t.strides[i] : (i == 3 ? 1 : strides[i + 1] * x.t.shape[i + 1]);
  return strides;
}

void run(py::handle pictures_object, bool bicubic, bool columns_first,
         const std::vector<float>& mean, const std::vector<float>& std_of_values,
         py::handle out_object, int num_threads, const std::string& isa_name) {
  const View pictures("pictures", pictures_object), out("out", out_object);
  if (pictures.t.device.type != dl::kCpu)
    refuse("pictures", "a tensor on the CPU", "another device");
  want_cpu(out);
  if (!is_bytes(pictures) || pictures.t.ndim != 4 || pictures.t.shape[3] != 3)
    refuse("pictures", "[B, H, W, 3] uint8", "another");
  const int64_t count = pictures.t.shape[0], height = pictures.t.shape[1],
                width = pictures.t.shape[2];
  if (out.t.ndim != 4 || out.t.shape[0] != count)
    refuse("out", "4 dimensions, as many pictures as there are", "another shape");
  const bool bytes = is_bytes(out);
  const int64_t size = out.t.shape[2];
  if (bytes && (!bicubic || out.t.shape[1] != size || out.t.shape[3] != 3))
    refuse("out", "[B, S, S, 3], for bicubic", "another shape");
  float* const planes = bytes ? nullptr : const_cast<float*>(floats(out, {count, 3, size, size}));
  for (const int64_t side : {height, width, size}) {
    if (side < 1 || side > kMostPixels)
      refuse("pictures, out", "sides of 1 to 2^24 pixels", std::to_string(side));
  }
  if (mean.size() != 3 || std_of_values.size() != 3)
    refuse("mean, std", "three numbers each", "others");
  const std::vector<int64_t> strides = strides_of(pictures);
  if (columns_first && (!bicubic || strides[2] != 3 || strides[3] != 1))
    refuse("pictures", "packed pixels, for bicubic", "others");
  const PreprocessParams params{pictures.data<const uint8_t>(),
                                count,
                                height,
                                width,
                                strides[0],
                                strides[1],
                                strides[2],
                                strides[3],
                                size,
                                bicubic ? ResampleFilter::kBicubic : ResampleFilter::kBilinear,
                                columns_first,
                                {mean[0], mean[1], mean[2]},
                                {std_of_values[0], std_of_values[1], std_of_values[2]},
                                planes,
                                bytes ? out.data<uint8_t>() : nullptr};
  const Isa isa = isa_of(isa_name);
  bool done = true;
  if (count > 0) {
    py::gil_scoped_release release;
    done = preprocess_cpu(params, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_preprocess(py::module_& module) {
  module.def("preprocess", &run, py::arg("pictures"), py::arg("bicubic"), py::arg("columns_first"),
             py::arg("mean"), py::arg("std"), py::arg("out"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
