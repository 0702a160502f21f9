// Checks and launch of csrc/window_attention.h.
#include "csrc/window_attention.h"

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxWindow = 64;  // tokens along a side
constexpr int64_t kMaxHead = 1024;  // channels

void attend(py::handle qkv_object, py::handle pad_object, py::handle out_object, int64_t heads,
            int64_t window, bool pool, int num_threads, const std::string& isa_name) {
  const View qkv("qkv", qkv_object), pad("pad", pad_object), out("out", out_object);
  for (const View* view : {&qkv, &out}) {
    if (view->t.ndim != 4) refuse(view->name, "4 dimensions", std::to_string(view->t.ndim));
  }
  for (const View* view : {&qkv, &pad, &out}) want_cpu(*view);
  WindowAttentionParams p{};
  p.storage = storage_of(qkv);
  if (storage_of(out) != p.storage) refuse("out", "the dtype of qkv", "another dtype");
  p.batch = qkv.t.shape[0], p.height = qkv.t.shape[1], p.width = qkv.t.shape[2];
  const int64_t channels = qkv.t.shape[3];
  if (heads < 1 || channels % (3 * heads) != 0)
    refuse("qkv", "3 x heads x head_dim channels", std::to_string(channels));
  p.heads = heads, p.head_dim = channels / (3 * heads), p.window = window, p.pool = pool;
  if (p.head_dim < 2 || p.head_dim % 2 != 0 || p.head_dim > kMaxHead)
    refuse("heads", "an even number of channels each, up to 1024", std::to_string(p.head_dim));
  if (window < 0 || window > kMaxWindow) refuse("window", "0 to 64", std::to_string(window));
  if (pool && (window % 2 != 0 || p.height % 2 != 0 || p.width % 2 != 0))
    refuse("pool", "even sizes", "odd ones");
  p.pad = floats(pad, {channels});
  const int64_t by = pool ? 2 : 1, sizes[] = {p.batch, p.height / by, p.width / by, channels / 3};
  for (int i = 0; i < 4; ++i) {
    if (out.t.shape[i] != sizes[i])
      refuse("out", "size " + std::to_string(sizes[i]) + " of dimension " + std::to_string(i),
             "another");
  }
  if (qkv.size() == 0) return;
  p.qkv = qkv.data<const void>(), p.out = out.data<void>();
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = window_attention_cpu(p, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_window_attention(py::module_& module) {
  module.def("window_attention", &attend, py::arg("qkv"), py::arg("pad"), py::arg("out"),
             py::arg("heads"), py::arg("window"), py::arg("pool"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
