// Checks and launch of csrc/affine.h.
#include "csrc/affine.h"

#include "bindings/weights.h"

namespace sam2_fast {
namespace {

// Weights that were checked, and the tensors in whose memory they lie.
struct HeldAffine {
  HeldWeights held;
  AffineWeights weights{};

  explicit HeldAffine(const py::object& object) {
    const WeightFields fields(object, "weights", held);
    const View weight(fields.name_of("weight"), fields.get("weight"));
    weight.want_dimensions(1);
    weights.channels = weight.t.shape[0];
    weights.weight = fields.vector("weight", weights.channels);
    weights.bias = fields.vector("bias", weights.channels);
  }
};

void run(py::handle x_object, const HeldAffine& held, py::handle out_object, int num_threads,
         const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  for (const View* view : {&x, &out}) {
    view->want_dimensions(2);
    want_contiguous_on_cpu(*view);
  }
  AffineParams params{};
  params.weights = held.weights;
  params.storage = storage_of(x);
  params.rows = x.t.shape[0];
  x.want_shape({params.rows, held.weights.channels});
  out.want_shape({params.rows, held.weights.channels});
  out.want_dtype_of(x);
  if (x.size() == 0) return;
  params.x = x.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&affine_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_affine(py::module_& module) {
  py::class_<HeldAffine>(module, "AffineWeights",
                         "Weights that were checked once, and are held; read by name.")
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("channels", [](const HeldAffine& h) { return h.weights.channels; });
  module.def("affine", &run, py::arg("x"), py::arg("weights"), py::arg("out"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
