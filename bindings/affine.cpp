// Checks the arguments of the kernels in csrc/affine.h and runs them.
#include "csrc/affine.h"

#include "bindings/weights.h"

namespace sam2_fast {
namespace {

// Checked weights, and references to the tensors that store them.
struct AffineWeightsOwner {
  WeightTensors tensors;
  AffineWeights weights{};

  explicit AffineWeightsOwner(const py::object& object) {
    const WeightFields fields(object, "weights", tensors);
    const View weight(fields.name_of("weight"), fields.get("weight"));
    weight.require_dimensions(1);
    weights.channels = weight.t.shape[0];
    weights.weight = fields.vector("weight", weights.channels);
    weights.bias = fields.vector("bias", weights.channels);
  }
};

void run(py::handle x_object, const AffineWeightsOwner& owner, py::handle out_object,
         int num_threads, const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  for (const View* view : {&x, &out}) {
    view->require_dimensions(2);
    require_contiguous_on_cpu(*view);
  }
  AffineParams params{};
  params.weights = owner.weights;
  params.storage = storage_of(x);
  params.rows = x.t.shape[0];
  x.require_shape({params.rows, owner.weights.channels});
  out.require_shape({params.rows, owner.weights.channels});
  out.require_dtype_of(x);
  if (x.size() == 0) return;
  require_output(out, {&x});
  params.x = x.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&affine_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_affine(py::module_& module) {
  py::class_<AffineWeightsOwner>(module, "AffineWeights",
                                 "Weights, read from the attributes of an object and checked once.")
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly(
          "channels", [](const AffineWeightsOwner& owner) { return owner.weights.channels; });
  module.def("affine", &run, py::arg("x"), py::arg("weights"), py::arg("out"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
