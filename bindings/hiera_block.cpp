// Checks the arguments of the kernels in csrc/hiera_block.h and runs them.
#include "csrc/hiera_block.h"

#include "bindings/weights.h"
#include "bindings/window.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxChannels = 16384;  // of each layer

// Checked weights, and references to the tensors that store them.
struct HieraBlockWeightsOwner {
  WeightTensors tensors;
  HieraBlockWeights weights{};

  explicit HieraBlockWeightsOwner(const py::object& object) {
    const WeightFields fields(object, "weights", tensors);
    const int64_t dim = fields.fields("qkv").even_columns("weight", kMaxChannels);
    const int64_t dim_out = fields.fields("proj").even_rows("weight", kMaxChannels);
    const int64_t hidden = fields.fields("fc1").even_rows("weight", kMaxChannels);
    weights.dim = dim;
    weights.dim_out = dim_out;
    weights.hidden = hidden;
    weights.norm1 = fields.norm("norm1", dim);
    weights.qkv = fields.linear("qkv", 3 * dim_out, dim);
    weights.proj = fields.linear("proj", dim_out, dim_out);
    weights.norm2 = fields.norm("norm2", dim_out);
    weights.fc1 = fields.linear("fc1", hidden, dim_out);
    weights.fc2 = fields.linear("fc2", dim_out, hidden);
    if (fields.has("shortcut")) {
      weights.shortcut = fields.linear("shortcut", dim_out, dim);
    } else if (dim != dim_out) {
      refuse("weights.shortcut",
             "a layer from " + std::to_string(dim) + " to " + std::to_string(dim_out) + " channels",
             "None");
    }
    weights.storage = tensors.storage;
  }

  bool has_shortcut() const { return weights.shortcut.weight != nullptr; }
};

void check_pool(const View& x, const HieraBlockWeightsOwner& owner, int64_t window, bool pool) {
  if (pool != owner.has_shortcut()) {
    const char* const shortcut = owner.has_shortcut() ? "a shortcut" : "no shortcut";
    refuse("pool", std::string(pool ? "False" : "True") + " for weights with " + shortcut,
           pool ? "True" : "False");
  }
  if (pool) require_even_window(window, x, 2);
}

void run(py::handle x_object, const HieraBlockWeightsOwner& owner, py::handle out_object,
         int64_t heads, int64_t window, bool pool, double epsilon, int num_threads,
         const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  for (const View* view : {&x, &out}) {
    view->require_dimensions(4);
    require_contiguous_on_cpu(*view);
  }
  const HieraBlockWeights& weights = owner.weights;
  HieraBlockParams params{};
  params.storage = storage_of(x);
  out.require_dtype_of(x);
  params.weights = weights;
  params.batch = x.t.shape[0];
  params.height = x.t.shape[1];
  params.width = x.t.shape[2];
  params.heads = heads;
  params.window = window;
  params.pool = pool;
  params.epsilon = static_cast<float>(epsilon);
  x.require_shape({params.batch, params.height, params.width, weights.dim});
  if (heads < 1 || weights.dim_out % heads != 0 || weights.dim_out / heads % 2 != 0) {
    refuse("heads",
           "a number that divides " + std::to_string(weights.dim_out) +
               " channels into heads of an even number each",
           std::to_string(heads));
  }
  require_window(window);
  check_pool(x, owner, window, pool);
  const int64_t cell_side = pool ? 2 : 1;
  out.require_each_size(
      {params.batch, params.height / cell_side, params.width / cell_side, weights.dim_out});
  if (x.size() == 0) return;
  if (pool || out.data<const void>() != x.data<const void>()) {
    require_output(out, {&x});
  } else {
    require_output(out, {});
  }
  params.x = x.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&hiera_block_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_hiera_block(py::module_& module) {
  typedef HieraBlockWeightsOwner Owner;
  const std::string doc =
      std::string(
          R"(Weights of a Hiera block, read from the attributes of an object: norm1 [C],
qkv [3 D, C], proj [D, D], norm2 [D], fc1 [F, D], fc2 [D, F] and shortcut [D, C] or None,
each with weight and bias. All matrices have the same dtype; vectors are float32.
)") + kWeightsDoc;
  py::class_<Owner>(module, "HieraBlockWeights", doc.c_str())
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("dim", [](const Owner& owner) { return owner.weights.dim; })
      .def_property_readonly("dim_out", [](const Owner& owner) { return owner.weights.dim_out; })
      .def_property_readonly("hidden", [](const Owner& owner) { return owner.weights.hidden; });
  module.def("hiera_block", &run, py::arg("x"), py::arg("weights"), py::arg("out"),
             py::arg("heads"), py::arg("window"), py::arg("pool"), py::arg("epsilon"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
