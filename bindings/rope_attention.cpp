// Checks the arguments of the kernels in csrc/rope_attention.h and runs them.
#include "csrc/rope_attention.h"

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxDim = 1024;  // channels; a row of q must fit the kernel's scratch memory

void run(py::handle q_object, py::handle k_object, py::handle v_object, py::handle table_object,
         py::handle out_object, int64_t unrotated, int num_threads, const std::string& isa_name) {
  const View q("q", q_object), k("k", k_object), v("v", v_object);
  const View table("table", table_object), out("out", out_object);
  for (const View* view : {&q, &k, &v, &table, &out}) {
    view->require_dimensions(3);
    require_contiguous_on_cpu(*view);
  }
  RopeAttentionParams params{};
  params.storage = storage_of(q);
  for (const View* view : {&k, &v, &out}) view->require_dtype_of(q);
  const int64_t batch = q.t.shape[0], queries = q.t.shape[1], dim = q.t.shape[2];
  const int64_t keys = k.t.shape[1], value_dim = v.t.shape[2];
  if (dim % 2 != 0 || dim < 2 || dim > kMaxDim) {
    refuse("q", "an even number of channels up to " + std::to_string(kMaxDim), std::to_string(dim));
  }
  if (value_dim < 1 || value_dim > kMaxDim) {
    refuse("v", "1 to " + std::to_string(kMaxDim) + " channels", std::to_string(value_dim));
  }
  k.require_shape({batch, keys, dim});
  v.require_shape({batch, keys, value_dim});
  out.require_shape({batch, queries, value_dim});
  params.cos = floats(table, {2, queries, dim / 2});
  params.sin = params.cos + queries * (dim / 2);
  if (keys < 1) refuse("k", "1 or more keys", std::to_string(keys));
  if (unrotated < 0 || unrotated > keys || (queries > 0 && (keys - unrotated) % queries != 0)) {
    refuse("k", "whole maps of as many tokens as q, then the unrotated tokens",
           std::to_string(keys) + " keys for " + std::to_string(queries) + " queries and " +
               std::to_string(unrotated) + " unrotated tokens");
  }
  if (batch == 0 || queries == 0) return;
  require_output(out, {&q, &k, &v, &table});
  params.q = q.data<const void>();
  params.k = k.data<const void>();
  params.v = v.data<const void>();
  params.out = out.data<void>();
  params.batch = batch;
  params.queries = queries;
  params.keys = keys;
  params.unrotated = unrotated;
  params.dim = static_cast<int32_t>(dim);
  params.value_dim = static_cast<int32_t>(value_dim);
  run_on_cpu(&rope_attention_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_rope_attention(py::module_& module) {
  module.def("rope_attention", &run, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("table"),
             py::arg("out"), py::arg("unrotated"), py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
