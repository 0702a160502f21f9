// Checks and launch of csrc/hiera_block.h.
#include "csrc/hiera_block.h"

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxWindow = 64;       // tokens along a side
constexpr int64_t kMaxChannels = 16384;  // of any layer

const char* const kNames[] = {"norm1.weight",    "norm1.bias",   "qkv.weight",   "qkv.bias",
                              "proj.weight",     "proj.bias",    "norm2.weight", "norm2.bias",
                              "fc1.weight",      "fc1.bias",     "fc2.weight",   "fc2.bias",
                              "shortcut.weight", "shortcut.bias"};

void run(py::handle x_object, const py::sequence& tensors, py::handle out_object, int64_t heads,
         int64_t window, bool pool, double epsilon, int num_threads, const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object);
  for (const View* view : {&x, &out}) {
    if (view->t.ndim != 4) refuse(view->name, "4 dimensions", std::to_string(view->t.ndim));
    want_cpu(*view);
  }
  const Weights w(tensors, kNames, 14);
  const size_t count = w.views.size();
  if (count != 12 && count != 14)
    refuse("weights", "12 tensors, or 14 with a shortcut", std::to_string(count));
  HieraBlockParams p{};
  p.storage = storage_of(x);
  if (storage_of(out) != p.storage) refuse("out", "the dtype of x", "another dtype");
  p.batch = x.t.shape[0], p.height = x.t.shape[1], p.width = x.t.shape[2], p.dim = x.t.shape[3];
  p.heads = heads, p.window = window, p.pool = pool, p.epsilon = static_cast<float>(epsilon);
  if (w.views[4].t.ndim != 2 || w.views[8].t.ndim != 2)
    refuse("weights", "matrices of two dimensions", "others");
  p.dim_out = w.views[4].t.shape[0], p.hidden = w.views[8].t.shape[0];
  for (const int64_t channels : {p.dim, p.dim_out, p.hidden}) {
    if (channels < 2 || channels % 2 != 0 || channels > kMaxChannels)
      refuse("weights", "even widths up to 16384", std::to_string(channels));
  }
  if (heads < 1 || p.dim_out % heads != 0 || p.dim_out / heads % 2 != 0)
    refuse("heads", "an even number of channels each", std::to_string(heads));
  if (window < 0 || window > kMaxWindow) refuse("window", "0 to 64", std::to_string(window));
  if (pool != (count == 14))
    refuse("weights", "a shortcut exactly where queries are pooled", "the contrary");
  if (pool && (window < 2 || window % 2 != 0 || p.height % 2 != 0 || p.width % 2 != 0))
    refuse("pool", "even sizes and a window", "odd ones or none");
  if (!pool && p.dim != p.dim_out)
    refuse("weights", "as many channels out as in", std::to_string(p.dim_out));
  p.weights = storage_of(w.views[2]);
  p.norm1_weight = w.vector(0, p.dim), p.norm1_bias = w.vector(1, p.dim);
  p.qkv = w.linear(2, 3 * p.dim_out, p.dim), p.proj = w.linear(4, p.dim_out, p.dim_out);
  p.norm2_weight = w.vector(6, p.dim_out), p.norm2_bias = w.vector(7, p.dim_out);
  p.fc1 = w.linear(8, p.hidden, p.dim_out), p.fc2 = w.linear(10, p.dim_out, p.hidden);
  if (pool) p.shortcut = w.linear(12, p.dim_out, p.dim);
  const int64_t by = pool ? 2 : 1, sizes[] = {p.batch, p.height / by, p.width / by, p.dim_out};
  for (int i = 0; i < 4; ++i) {
    if (out.t.shape[i] != sizes[i])
      refuse("out", "size " + std::to_string(sizes[i]) + " of dimension " + std::to_string(i),
             "another");
  }
  if (x.size() == 0) return;
  p.x = x.data<const void>(), p.out = out.data<void>();
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = hiera_block_cpu(p, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_hiera_block(py::module_& module) {
  module.def("hiera_block", &run, py::arg("x"), py::arg("weights"), py::arg("out"),
             py::arg("heads"), py::arg("window"), py::arg("pool"), py::arg("epsilon"),
             py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
