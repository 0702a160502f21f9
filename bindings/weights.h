// An op's weights, read once from the attributes of a Python object.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/storage.h"
#include "csrc/cpu/layers.h"

namespace sam2_fast {

// How docstrings of held weights end.
constexpr const char* kHeldDoc = R"(
The tensors are held. In-place writes to the tensors are seen; replacing an attribute or a
parameter's `.data` is not. ValueError names the field that does not fit.)";

// What all weights of an op share: the tensors in whose memory they lie, and the dtype of its
// matrices, which the first one that is read decides.
struct HeldWeights {
  HeldWeights() = default;
  HeldWeights(const HeldWeights&) = delete;
  HeldWeights& operator=(const HeldWeights&) = delete;
  std::vector<py::object> tensors;
  std::optional<View> first_matrix;
  Storage storage = Storage::kFloat32;
};

// One Python object whose attributes are weights. `name` is the way to it, as in
// weights.layers[1].self_q, for errors.
class WeightFields {
 public:
  WeightFields(py::object object, std::string name, HeldWeights& held)
      : object_(std::move(object)), name_(std::move(name)), held_(held) {}

  std::string name_of(const char* field) const { return name_ + "." + field; }

  py::object get(const char* field) const {
    PyObject* const value = PyObject_GetAttrString(object_.ptr(), field);
    if (value == nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
      PyErr_Clear();
      const std::string type = Py_TYPE(object_.ptr())->tp_name;
      refuse(name_, std::string("an attribute ") + field, "an object of type " + type);
    }
    return py::reinterpret_steal<py::object>(value);
  }

  bool has(const char* field) const { return !get(field).is_none(); }

  WeightFields fields(const char* field) const { return {get(field), name_of(field), held_}; }

  // The elements of a sequence of `least` or more objects.
  std::vector<WeightFields> sequence(const char* field, size_t least) const {
    const py::object sequence = get(field);
    if (!PySequence_Check(sequence.ptr())) {
      refuse(name_of(field), "a sequence", Py_TYPE(sequence.ptr())->tp_name);
    }
    std::vector<WeightFields> elements;
    for (const py::handle element : py::reinterpret_borrow<py::sequence>(sequence)) {
      const std::string index = "[" + std::to_string(elements.size()) + "]";
      elements.emplace_back(py::reinterpret_borrow<py::object>(element), name_of(field) + index,
                            held_);
    }
    if (elements.size() < least) {
      refuse(name_of(field), std::to_string(least) + " or more", std::to_string(elements.size()));
    }
    return elements;
  }

  // A sequence of exactly `count` objects.
  std::vector<WeightFields> sequence_of(const char* field, size_t count) const {
    std::vector<WeightFields> elements = sequence(field, 0);
    if (elements.size() != count) {
      refuse(name_of(field), std::to_string(count), std::to_string(elements.size()));
    }
    return elements;
  }

  // A matrix in the dtype that all matrices of the op share.
  const void* matrix(const char* field, int64_t rows, int64_t columns) const {
    const View x = view(field);
    x.want_shape({rows, columns});
    const Storage storage = storage_of(x);
    if (!held_.first_matrix) {
      held_.first_matrix = x;
      held_.storage = storage;
    }
    x.want_dtype_of(*held_.first_matrix);
    return x.data<const void>();
  }

  const float* float_matrix(const char* field, int64_t rows, int64_t columns) const {
    return floats(view(field), {rows, columns});
  }

  const float* vector(const char* field, int64_t channels) const {
    return floats(view(field), {channels});
  }

  Linear linear(const char* field, int64_t rows, int64_t columns) const {
    const WeightFields layer = fields(field);
    return {layer.matrix("weight", rows, columns), layer.vector("bias", rows)};
  }

  Norm norm(const char* field, int64_t channels) const {
    const WeightFields layer = fields(field);
    return {layer.vector("weight", channels), layer.vector("bias", channels)};
  }

  // Rows or columns of the matrix `field`: a multiple of `step`, up to `most`.
  int64_t rows(const char* field, int64_t most, int64_t step = 1) const {
    return count(field, "rows", 0, most, step);
  }
  int64_t even_rows(const char* field, int64_t most) const { return rows(field, most, 2); }
  int64_t even_columns(const char* field, int64_t most) const {
    return count(field, "columns", 1, most, 2);
  }

 private:
  // The tensor is detached: an alias, whose memory stays where it is if the parameter's `data` is
  // replaced.
  View view(const char* field) const {
    const py::object tensor = get(field);
    want_tensor(name_of(field), tensor);
    held_.tensors.push_back(call(tensor, method_names().detach));
    View x(name_of(field), held_.tensors.back());
    want_contiguous_on_cpu(x);
    return x;
  }

  int64_t count(const char* field, const char* what, int axis, int64_t most, int64_t step) const {
    const View x(name_of(field), get(field));
    x.want_dimensions(2);
    const int64_t size = x.t.shape[axis];
    if (size < 1 || size > most || size % step != 0) {
      const std::string kind = step == 1 ? "1 or more" : "a multiple of " + std::to_string(step);
      refuse(x.name, kind + " " + what + " up to " + std::to_string(most),
             text_of_sizes(x.sizes()));
    }
    return size;
  }

  py::object object_;
  std::string name_;
  HeldWeights& held_;
};

}  // namespace sam2_fast
