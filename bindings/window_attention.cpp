// Checks the arguments of the kernels in csrc/window_attention.h and runs them.
#include "csrc/window_attention.h"

#include "bindings/storage.h"
#include "bindings/window.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxHead = 1024;  // channels

void run(py::handle qkv_object, py::handle pad_object, py::handle out_object, int64_t heads,
         int64_t window, bool pool, int num_threads, const std::string& isa_name) {
  const View qkv("qkv", qkv_object), pad("pad", pad_object), out("out", out_object);
  qkv.require_dimensions(4);
  out.require_dimensions(4);
  for (const View* view : {&qkv, &pad, &out}) require_contiguous_on_cpu(*view);
  WindowAttentionParams params{};
  params.storage = storage_of(qkv);
  out.require_dtype_of(qkv);
  params.batch = qkv.t.shape[0];
  params.height = qkv.t.shape[1];
  params.width = qkv.t.shape[2];
  const int64_t channels = qkv.t.shape[3];
  if (heads < 1 || channels % 3 != 0 || channels / 3 % heads != 0) {  // 3 * heads may overflow
    refuse("qkv", "3 x heads x head_dim channels for " + std::to_string(heads) + " heads",
           std::to_string(channels));
  }
  params.heads = heads;
  params.head_dim = channels / 3 / heads;
  params.window = window;
  params.pool = pool;
  if (params.head_dim < 2 || params.head_dim % 2 != 0 || params.head_dim > kMaxHead) {
    refuse("heads", "an even number of channels each, up to " + std::to_string(kMaxHead),
           std::to_string(params.head_dim));
  }
  require_window(window);
  if (pool) require_even_window(window, qkv, 0);
  params.pad = floats(pad, {channels});
  const int64_t cell_side = pool ? 2 : 1;
  out.require_each_size(
      {params.batch, params.height / cell_side, params.width / cell_side, channels / 3});
  if (qkv.size() == 0) return;
  require_output(out, {&qkv, &pad});
  params.qkv = qkv.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&window_attention_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_window_attention(py::module_& module) {
  module.def("window_attention", &run, py::arg("qkv"), py::arg("pad"), py::arg("out"),
             py::arg("heads"), py::arg("window"), py::arg("pool"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
