// Checks and launch of csrc/hiera_block.h.
#include "csrc/hiera_block.h"

#include "bindings/weights.h"
#include "bindings/window.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxChannels = 16384;  // of any layer

// Weights that were checked, and the tensors in whose memory they lie.
struct HeldHieraBlock {
  HeldWeights held;
  HieraBlockWeights weights{};

  explicit HeldHieraBlock(const py::object& object) {
    const WeightFields fields(object, "weights", held);
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
    weights.storage = held.storage;
  }

  bool has_shortcut() const { return weights.shortcut.weight != nullptr; }
};

void check_pool(const View& x, const HeldHieraBlock& held, int64_t window, bool pool) {
  if (pool != held.has_shortcut()) {
    const char* const shortcut = held.has_shortcut() ? "a shortcut" : "no shortcut";
    refuse("pool", std::string(pool ? "False" : "True") + " for weights with " + shortcut,
           pool ? "True" : "False");
  }
  if (pool) want_even_window(window, x, 2);
}

void run(py::handle x_object, const HeldHieraBlock& held, py::handle out_object, int64_t heads,
         int64_t window, bool pool, double epsilon, int num_threads, const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  for (const View* view : {&x, &out}) {
    view->want_dimensions(4);
    want_contiguous_on_cpu(*view);
  }
  const HieraBlockWeights& weights = held.weights;
  HieraBlockParams params{};
  params.storage = storage_of(x);
  out.want_dtype_of(x);
  params.weights = weights;
  params.batch = x.t.shape[0];
  params.height = x.t.shape[1];
  params.width = x.t.shape[2];
  params.heads = heads;
  params.window = window;
  params.pool = pool;
  params.epsilon = static_cast<float>(epsilon);
  x.want_shape({params.batch, params.height, params.width, weights.dim});
  if (heads < 1 || weights.dim_out % heads != 0 || weights.dim_out / heads % 2 != 0) {
    refuse("heads",
           "a number that divides " + std::to_string(weights.dim_out) +
               " channels into heads of an even number each",
           std::to_string(heads));
  }
  want_window(window);
  check_pool(x, held, window, pool);
  const int64_t by = pool ? 2 : 1;
  out.want_each_size({params.batch, params.height / by, params.width / by, weights.dim_out});
  if (x.size() == 0) return;
  params.x = x.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&hiera_block_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_hiera_block(py::module_& module) {
  typedef HeldHieraBlock Held;
  const std::string doc =
      std::string(
          R"(Of an object with norm1 [C], qkv [3 D, C], proj [D, D], norm2 [D], fc1 [F, D],
fc2 [D, F] and shortcut [D, C] or None, each with weight and bias. Matrices are of one
dtype, vectors float32.
)") + kHeldDoc;
  py::class_<Held>(module, "HieraBlockWeights", doc.c_str())
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("dim", [](const Held& held) { return held.weights.dim; })
      .def_property_readonly("dim_out", [](const Held& held) { return held.weights.dim_out; })
      .def_property_readonly("hidden", [](const Held& held) { return held.weights.hidden; });
  module.def("hiera_block", &run, py::arg("x"), py::arg("weights"), py::arg("out"),
             py::arg("heads"), py::arg("window"), py::arg("pool"), py::arg("epsilon"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
