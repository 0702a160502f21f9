// Checks the arguments of the kernels in csrc/memory_attention.h and runs them.
#include "csrc/memory_attention.h"

#include <pybind11/stl.h>

#include "bindings/weights.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxChannels = 16384;  // of each layer

MemoryLayerWeights layer_of(const WeightFields& fields, const MemoryAttentionWeights& sizes) {
  const int64_t dim = sizes.dim, memory_dim = sizes.memory_dim, hidden = sizes.hidden;
  MemoryLayerWeights layer{};
  layer.norm1 = fields.norm("norm1", dim);
  layer.self_q = fields.linear("self_q", dim, dim);
  layer.self_k = fields.linear("self_k", dim, dim);
  layer.self_v = fields.linear("self_v", dim, dim);
  layer.self_out = fields.linear("self_out", dim, dim);
  layer.norm2 = fields.norm("norm2", dim);
  layer.q = fields.linear("q", dim, dim);
  layer.k = fields.linear("k", dim, memory_dim);
  layer.v = fields.linear("v", dim, memory_dim);
  layer.out = fields.linear("out", dim, dim);
  layer.norm3 = fields.norm("norm3", dim);
  layer.linear1 = fields.linear("linear1", hidden, dim);
  layer.linear2 = fields.linear("linear2", dim, hidden);
  return layer;
}

// Checked weights, and references to the tensors that store them.
struct MemoryAttentionWeightsOwner {
  WeightTensors tensors;
  std::vector<MemoryLayerWeights> layers;
  MemoryAttentionWeights weights{};

  explicit MemoryAttentionWeightsOwner(const py::object& object) {
    const WeightFields fields(object, "weights", tensors);
    const std::vector<WeightFields> layer_fields = fields.sequence("layers", 1);
    const WeightFields& first = layer_fields.front();
    weights.dim = first.fields("self_q").even_rows("weight", kMaxChannels);
    weights.memory_dim = first.fields("k").even_columns("weight", weights.dim);
    weights.hidden = first.fields("linear1").even_rows("weight", kMaxChannels);
    for (const WeightFields& layer : layer_fields) layers.push_back(layer_of(layer, weights));
    weights.layers = layers.data();
    weights.num_layers = static_cast<int64_t>(layers.size());
    weights.norm = fields.norm("norm", weights.dim);
    weights.storage = tensors.storage;
  }
};

// `first` must be offsets of each object's first entry, then the number of entries.
void require_offsets(const char* name, const std::vector<int64_t>& first, int64_t objects,
                     int64_t end) {
  bool fits = static_cast<int64_t>(first.size()) == objects + 1;
  fits = fits && first.front() == 0 && first.back() == end;
  if (fits && std::is_sorted(first.begin(), first.end())) return;
  const std::string count = std::to_string(objects + 1);
  refuse(name, count + " ascending offsets from 0 to " + std::to_string(end), text_of_sizes(first));
}

void require_below(const char* name, const std::vector<int64_t>& indices, int64_t end,
                   const char* items) {
  for (const int64_t index : indices) {
    if (index >= 0 && index < end) continue;
    refuse(name, "indices of the " + std::to_string(end) + " " + items, std::to_string(index));
  }
}

std::vector<const void*> maps_of(const py::sequence& objects, const MemoryAttentionParams& params,
                                 const View& out, Storage* storage) {
  std::vector<const void*> maps;
  std::vector<View> views;
  views.reserve(py::len(objects));
  for (const py::handle object : objects) {
    views.emplace_back("maps[" + std::to_string(views.size()) + "]", object);
    const View& map = views.back();
    require_contiguous_on_cpu(map);
    map.require_shape({params.tokens, params.weights.memory_dim});
    *storage = storage_of(map);
    map.require_dtype_of(views.front());
    require_output(out, {&map});
    maps.push_back(map.data<const void>());
  }
  return maps;
}

void run(py::handle x_object, const MemoryAttentionWeightsOwner& owner, py::handle table_object,
         const py::sequence& map_objects, py::handle temporal_object,
         py::handle map_positions_object, const std::vector<int64_t>& slots,
         const std::vector<int64_t>& rows, const std::vector<int64_t>& first,
         py::handle pointers_object, py::handle positions_object,
         const std::vector<int64_t>& first_pointer, py::handle out_object, int num_threads,
         const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object), table("table", table_object);
  const View temporal("temporal", temporal_object),
      map_positions("map_positions", map_positions_object);
  const View pointers("pointers", pointers_object);
  const View positions("pointer_positions", positions_object);
  for (const View* view : {&x, &out, &table, &temporal, &map_positions, &pointers, &positions}) {
    require_contiguous_on_cpu(*view);
  }
  x.require_dimensions(3);
  out.require_dimensions(3);
  temporal.require_dimensions(2);
  pointers.require_dimensions(2);
  MemoryAttentionParams params{};
  params.weights = owner.weights;
  params.storage = storage_of(x);
  params.images = x.t.shape[0];
  params.tokens = x.t.shape[1];
  params.objects = out.t.shape[0];
  const int64_t dim = owner.weights.dim, memory_dim = owner.weights.memory_dim;
  x.require_shape({params.images, params.tokens, dim});
  require_one_or_each(x, params.objects);
  out.require_dtype_of(x);
  out.require_shape({params.objects, params.tokens, dim});
  params.cos = floats(table, {2, params.tokens, dim / 2});
  params.sin = params.cos + params.tokens * (dim / 2);
  params.map_positions = floats(map_positions, {params.tokens, memory_dim});
  const int64_t temporal_rows = temporal.t.shape[0], pointer_tokens = pointers.t.shape[0];
  params.temporal = floats(temporal, {temporal_rows, memory_dim});
  const std::vector<const void*> maps = maps_of(map_objects, params, out, &params.map_storage);
  params.maps = maps.data();
  require_offsets("first", first, params.objects, static_cast<int64_t>(slots.size()));
  if (rows.size() != slots.size()) {
    refuse("rows", std::to_string(slots.size()) + ", as many as slots",
           std::to_string(rows.size()));
  }
  require_below("slots", slots, static_cast<int64_t>(maps.size()), "maps");
  require_below("rows", rows, temporal_rows, "rows of temporal");
  require_offsets("first_pointer", first_pointer, params.objects, pointer_tokens);
  params.pointers = floats(pointers, {pointer_tokens, memory_dim});
  params.pointer_positions = floats(positions, {pointer_tokens, memory_dim});
  for (int64_t o = 0; o < params.objects; ++o) {
    if (first[o] == first[o + 1] && first_pointer[o] == first_pointer[o + 1]) {
      refuse("first", "a map or a pointer token for every object",
             "0 of both for object " + std::to_string(o));
    }
  }
  params.slots = slots.data();
  params.rows = rows.data();
  params.first = first.data();
  params.first_pointer = first_pointer.data();
  if (params.objects == 0 || params.tokens == 0) return;
  require_output(out, {&x, &table, &temporal, &map_positions, &pointers, &positions});
  params.x = x.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&memory_attention_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_memory_attention(py::module_& module) {
  typedef MemoryAttentionWeightsOwner Owner;
  const std::string doc = std::string(
                              R"(Weights of memory attention, read from the attributes of an object:
layers: a sequence of layers, each with norm1, norm2, norm3 [C]; self_q, self_k, self_v,
    self_out, q, out [C, C]; k, v [C, M]; linear1 [F, C], linear2 [C, F].
norm [C].
Each of these has weight and bias.
)") + kWeightsDoc;
  py::class_<Owner>(module, "MemoryAttentionWeights", doc.c_str())
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("dim", [](const Owner& owner) { return owner.weights.dim; })
      .def_property_readonly("memory_dim",
                             [](const Owner& owner) { return owner.weights.memory_dim; })
      .def_property_readonly("hidden", [](const Owner& owner) { return owner.weights.hidden; })
      .def_property_readonly("num_layers",
                             [](const Owner& owner) { return owner.weights.num_layers; });
  module.def("memory_attention", &run, py::arg("x"), py::arg("weights"), py::arg("table"),
             py::arg("maps"), py::arg("temporal"), py::arg("map_positions"), py::arg("slots"),
             py::arg("rows"), py::arg("first"), py::arg("pointers"), py::arg("pointer_positions"),
             py::arg("first_pointer"), py::arg("out"), py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
