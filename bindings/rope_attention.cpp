// Checks and launch of csrc/rope_attention.h.
#include "csrc/rope_attention.h"

#include "bindings/storage.h"
#include "bindings/tensor.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxDim = 1024;  // channels; the kernel keeps a row of q in its scratch

void attend(py::handle q_object, py::handle k_object, py::handle v_object, py::handle table_object,
            py::handle out_object, int64_t unrotated, int num_threads,
            const std::string& isa_name) {
  const View q("q", q_object), k("k", k_object), v("v", v_object), table("table", table_object),
      out("out", out_object);
  for (const View* x : {&q, &k, &v, &table, &out}) {
    if (x->t.ndim != 3) refuse(x->name, "3 dimensions", std::to_string(x->t.ndim));
    if (x->t.device.type != dl::kCpu)
      refuse(x->name, "a tensor on the CPU", "device type " + std::to_string(x->t.device.type));
    x->want_contiguous();
  }
  const Storage storage = storage_of(q);
  for (const View* x : {&k, &v, &out}) {
    if (storage_of(*x) != storage) refuse(x->name, "the dtype of q", "another dtype");
  }
  if (storage_of(table) != Storage::kFloat32) refuse("table", "float32", "another dtype");
  const int64_t batch = q.t.shape[0], queries = q.t.shape[1], dim = q.t.shape[2],
                keys = k.t.shape[1], value_dim = v.t.shape[2];
  if (dim % 2 != 0 || dim < 2 || dim > kMaxDim)
    refuse("q", "an even number of channels up to 1024", std::to_string(dim));
  if (value_dim < 1 || value_dim > kMaxDim)
    refuse("v", "1 to 1024 channels", std::to_string(value_dim));
  k.want_shape3(batch, keys, dim);
  v.want_shape3(batch, keys, value_dim);
  out.want_shape3(batch, queries, value_dim);
  table.want_shape3(2, queries, dim / 2);
  if (keys < 1) refuse("k", "1 or more keys", "none");
  if (unrotated < 0 || unrotated > keys || (queries > 0 && (keys - unrotated) % queries != 0)) {
    refuse("k", "whole maps of as many tokens as q, then the unrotated tokens",
           std::to_string(keys) + " keys");
  }
  if (batch == 0 || queries == 0) return;
  const float* cos = table.data<const float>();
  const RopeAttentionParams params{q.data<const void>(),
                                   k.data<const void>(),
                                   v.data<const void>(),
                                   cos,
                                   cos + queries * (dim / 2),
                                   out.data<void>(),
                                   storage,
                                   batch,
                                   queries,
                                   keys,
                                   unrotated,
                                   static_cast<int32_t>(dim),
                                   static_cast<int32_t>(value_dim)};
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = rope_attention_cpu(params, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_rope_attention(py::module_& module) {
  module.def("rope_attention", &attend, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("table"),
             py::arg("out"), py::arg("unrotated"), py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
