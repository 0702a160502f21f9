// Reads the weights of an op from the attributes of a Python object.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/storage.h"
#include "csrc/cpu/layers.h"

namespace sam2_fast {

// The last sentences of the docstrings of weight classes.
constexpr const char* kWeightsDoc = R"(
Keeps references to the tensors and uses their current values. Replaced attributes and a
replaced `.data` of a parameter have no effect. Raises ValueError with the name of a field
that does not fit.)";

// The tensors of an op's weights, which stay alive as long as this object. All matrices of the op
// must have the dtype of the first one.
struct WeightTensors {
  WeightTensors() = default;
  WeightTensors(const WeightTensors&) = delete;
  WeightTensors& operator=(const WeightTensors&) = delete;
  std::vector<py::object> references;
  std::optional<View> first_matrix;
  Storage storage = Storage::kFloat32;
};

// A Python object with weights as attributes. `name` is used in errors, for example
// weights.layers[1].self_q.
class WeightFields {
 public:
  WeightFields(py::object object, std::string name, WeightTensors& tensors)
      : object_(std::move(object)), name_(std::move(name)), tensors_(tensors) {}

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

  WeightFields fields(const char* field) const { return {get(field), name_of(field), tensors_}; }

  // The elements of a sequence of at least `min` objects.
  std::vector<WeightFields> sequence(const char* field, size_t min) const {
    const py::object sequence = get(field);
    if (!PySequence_Check(sequence.ptr())) {
      refuse(name_of(field), "a sequence", Py_TYPE(sequence.ptr())->tp_name);
    }
    std::vector<WeightFields> elements;
    for (const py::handle element : py::reinterpret_borrow<py::sequence>(sequence)) {
      const std::string index = "[" + std::to_string(elements.size()) + "]";
      elements.emplace_back(py::reinterpret_borrow<py::object>(element), name_of(field) + index,
                            tensors_);
    }
    if (elements.size() < min) {
      refuse(name_of(field), std::to_string(min) + " or more", std::to_string(elements.size()));
    }
    return elements;
  }

  // The elements of a sequence of exactly `count` objects.
  std::vector<WeightFields> sequence_of(const char* field, size_t count) const {
    std::vector<WeightFields> elements = sequence(field, 0);
    if (elements.size() != count) {
      refuse(name_of(field), std::to_string(count), std::to_string(elements.size()));
    }
    return elements;
  }

  // A matrix, in the dtype of the op's other matrices.
  const void* matrix(const char* field, int64_t rows, int64_t columns) const {
    const View x = view(field);
    x.require_shape({rows, columns});
    const Storage storage = storage_of(x);
    if (!tensors_.first_matrix) {
      tensors_.first_matrix = x;
      tensors_.storage = storage;
    }
    x.require_dtype_of(*tensors_.first_matrix);
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

  // Number of rows or columns of the matrix `field`: a multiple of `step`, at most `max`.
  int64_t rows(const char* field, int64_t max, int64_t step = 1) const {
    return count(field, "rows", 0, max, step);
  }
  int64_t even_rows(const char* field, int64_t max) const { return rows(field, max, 2); }
  int64_t even_columns(const char* field, int64_t max) const {
    return count(field, "columns", 1, max, 2);
  }

 private:
  // Keeps the detached tensor, an alias of the parameter's memory that stays valid if the
  // parameter's `data` is replaced.
  View view(const char* field) const {
    const py::object tensor = get(field);
    require_tensor(name_of(field), tensor);
    tensors_.references.push_back(call(tensor, method_names().detach));
    View x(name_of(field), tensors_.references.back());
    require_contiguous_on_cpu(x);
    return x;
  }

  int64_t count(const char* field, const char* axis_name, int axis, int64_t max,
                int64_t step) const {
    const View x(name_of(field), get(field));
    x.require_dimensions(2);
    const int64_t size = x.t.shape[axis];
    if (size < 1 || size > max || size % step != 0) {
      const std::string kind = step == 1 ? "1 or more" : "a multiple of " + std::to_string(step);
      refuse(x.name, kind + " " + axis_name + " up to " + std::to_string(max),
             text_of_sizes(x.sizes()));
    }
    return size;
  }

  py::object object_;
  std::string name_;
  WeightTensors& tensors_;
};

}  // namespace sam2_fast
