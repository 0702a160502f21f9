// Checks and launch of csrc/memory_attention.h.
#include "csrc/memory_attention.h"

#include <pybind11/stl.h>

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr size_t kTensors = 26;          // of a layer
constexpr int64_t kMaxChannels = 16384;  // of any layer

const char* const kNames[] = {"norm1.weight",    "norm1.bias",    "self q.weight",  "self q.bias",
                              "self k.weight",   "self k.bias",   "self v.weight",  "self v.bias",
                              "self out.weight", "self out.bias", "norm2.weight",   "norm2.bias",
                              "q.weight",        "q.bias",        "k.weight",       "k.bias",
                              "v.weight",        "v.bias",        "out.weight",     "out.bias",
                              "norm3.weight",    "norm3.bias",    "linear1.weight", "linear1.bias",
                              "linear2.weight",  "linear2.bias"};

MemoryLayer layer_of(const Weights& w, size_t at, int64_t dim, int64_t memory_dim, int64_t hidden) {
  MemoryLayer l{};
  l.norm1_weight = w.vector(at, dim), l.norm1_bias = w.vector(at + 1, dim);
  l.self_q = w.linear(at + 2, dim, dim), l.self_k = w.linear(at + 4, dim, dim);
  l.self_v = w.linear(at + 6, dim, dim), l.self_out = w.linear(at + 8, dim, dim);
  l.norm2_weight = w.vector(at + 10, dim), l.norm2_bias = w.vector(at + 11, dim);
  l.q = w.linear(at + 12, dim, dim), l.k = w.linear(at + 14, dim, memory_dim);
  l.v = w.linear(at + 16, dim, memory_dim), l.out = w.linear(at + 18, dim, dim);
  l.norm3_weight = w.vector(at + 20, dim), l.norm3_bias = w.vector(at + 21, dim);
  l.hidden = w.linear(at + 22, hidden, dim), l.last = w.linear(at + 24, dim, hidden);
  return l;
}

// `first`: where each object's entries begin, and where the last one's end.
void want_offsets(const char* name, const std::vector<int64_t>& first, int64_t objects,
                  int64_t end) {
  bool fits = static_cast<int64_t>(first.size()) == objects + 1 && first.front() == 0 &&
              first.back() == end;
  for (size_t i = 1; fits && i < first.size(); ++i) fits = first[i - 1] <= first[i];
  if (!fits)
    refuse(name,
           std::to_string(objects + 1) + " ascending offsets from 0 to " + std::to_string(end),
           "others");
}

void run(py::handle x_object, const py::sequence& tensors, py::handle table_object,
         const py::sequence& map_objects, py::handle temporal_object, py::handle place_object,
         const std::vector<int64_t>& slots, const std::vector<int64_t>& rows,
         const std::vector<int64_t>& first, py::handle pointers_object, py::handle positions_object,
         const std::vector<int64_t>& first_pointer, py::handle out_object, int num_threads,
         const std::string& isa_name) {
  const View x("x", x_object), out("out", out_object), table("table", table_object),
      temporal("temporal", temporal_object);
  const View place("place", place_object), pointers("pointers", pointers_object),
      positions("pointer_positions", positions_object);
  for (const View* view : {&x, &out, &table, &temporal, &place, &pointers, &positions})
    want_cpu(*view);
  for (const View* view : {&x, &out}) {
    if (view->t.ndim != 3) refuse(view->name, "3 dimensions", std::to_string(view->t.ndim));
  }
  const Weights w(tensors, kNames, kTensors);
  if (w.views.size() < kTensors + 2 || w.views.size() % kTensors != 2) {
    refuse("weights", "26 tensors a layer and 2 of the last norm", std::to_string(w.views.size()));
  }
  if (w.views[14].t.ndim != 2 || w.views[22].t.ndim != 2)
    refuse("weights", "matrices of two dimensions", "others");
  MemoryAttentionParams p{};
  p.storage = storage_of(x), p.weights = storage_of(w.views[2]);
  p.images = x.t.shape[0], p.tokens = x.t.shape[1], p.dim = x.t.shape[2],
  p.objects = out.t.shape[0];
  p.memory_dim = w.views[14].t.shape[1], p.hidden = w.views[22].t.shape[0];
  p.num_layers = static_cast<int64_t>(w.views.size() / kTensors);
  for (const int64_t channels : {p.dim, p.memory_dim, p.hidden}) {
    if (channels < 2 || channels % 2 != 0 || channels > kMaxChannels)
      refuse("weights", "even widths up to 16384", std::to_string(channels));
  }
  if (p.memory_dim > p.dim)
    refuse("weights", "memories no wider than the tokens", std::to_string(p.memory_dim));
  if (p.images != 1 && p.images != p.objects)
    refuse("x", "1 image or one an object", std::to_string(p.images));
  if (storage_of(out) != p.storage) refuse("out", "the dtype of x", "another dtype");
  out.want_shape3(p.objects, p.tokens, p.dim);
  std::vector<MemoryLayer> layers;
  for (int64_t i = 0; i < p.num_layers; ++i)
    layers.push_back(layer_of(w, i * kTensors, p.dim, p.memory_dim, p.hidden));
  p.layers = layers.data();
  p.norm_weight = w.vector(w.views.size() - 2, p.dim),
  p.norm_bias = w.vector(w.views.size() - 1, p.dim);
  p.cos = floats(table, {2, p.tokens, p.dim / 2}), p.sin = p.cos + p.tokens * (p.dim / 2);
  p.place = floats(place, {p.tokens, p.memory_dim});
  const int64_t temporal_rows = temporal.t.ndim == 2 ? temporal.t.shape[0] : 0;
  p.temporal = floats(temporal, {temporal_rows, p.memory_dim});
  std::vector<const void*> maps;
  for (size_t i = 0; i < py::len(map_objects); ++i) {
    const View map("maps", py::object(map_objects[i]));
    want_cpu(map);
    if (map.t.ndim != 2 || map.t.shape[0] != p.tokens || map.t.shape[1] != p.memory_dim) {
      refuse("maps",
             "[" + std::to_string(p.tokens) + ", " + std::to_string(p.memory_dim) + "] each",
             "another shape");
    }
    const Storage storage = storage_of(map);
    if (i > 0 && storage != p.map_storage) refuse("maps", "one dtype", "several");
    p.map_storage = storage;
    maps.push_back(map.data<const void>());
  }
  p.maps = maps.data();
  want_offsets("first", first, p.objects, static_cast<int64_t>(slots.size()));
  if (rows.size() != slots.size()) refuse("rows", "as many as slots", std::to_string(rows.size()));
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < 0 || slots[i] >= static_cast<int64_t>(maps.size()))
      refuse("slots", "places in maps", std::to_string(slots[i]));
    if (rows[i] < 0 || rows[i] >= temporal_rows)
      refuse("rows", "rows of temporal", std::to_string(rows[i]));
  }
  const int64_t pointer_tokens = pointers.t.ndim == 2 ? pointers.t.shape[0] : -1;
  want_offsets("first_pointer", first_pointer, p.objects, pointer_tokens);
  p.pointers = floats(pointers, {pointer_tokens, p.memory_dim});
  p.pointer_positions = floats(positions, {pointer_tokens, p.memory_dim});
  for (int64_t o = 0; o < p.objects; ++o) {
    if (first[o] == first[o + 1] && first_pointer[o] == first_pointer[o + 1])
      refuse("first", "a memory for every object", "none");
  }
  p.slots = slots.data(), p.rows = rows.data(), p.first = first.data(),
  p.first_pointer = first_pointer.data();
  if (p.objects == 0 || p.tokens == 0) return;
  p.x = x.data<const void>(), p.out = out.data<void>();
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = memory_attention_cpu(p, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_memory_attention(py::module_& module) {
  module.def("memory_attention", &run, py::arg("x"), py::arg("weights"), py::arg("table"),
             py::arg("maps"), py::arg("temporal"), py::arg("place"), py::arg("slots"),
             py::arg("rows"), py::arg("first"), py::arg("pointers"), py::arg("pointer_positions"),
             py::arg("first_pointer"), py::arg("out"), py::arg("num_threads"), py::arg("isa"));
}

}  // namespace sam2_fast
