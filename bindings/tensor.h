// Zero-copy views of torch tensors through torch's DLPack C exchange API: no torch headers, no
// torch library.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace sam2_fast {

namespace py = pybind11;

// Declarations of the stable DLPack ABI (version 1). See
// https://dmlc.github.io/dlpack/latest/c_api.html
namespace dl {
struct Version {
  uint32_t major, minor;
};
struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // elements; may be null for a contiguous tensor
  uint64_t byte_offset;
};
static_assert(sizeof(Tensor) == 48, "the ABI of DLPack 1");
struct Header {
  Version version;
  Header* previous;
};
struct Exchange {
  Header header;
  void* allocator;
  void* managed_from_object;
  void* managed_to_object;
  int (*view_of_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};
enum : int32_t { kCpu = 1, kCuda = 2 };
enum : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };
}  // namespace dl

// torch's DLPack exchange API, looked up once.
inline const dl::Exchange& exchange() {
  static const dl::Exchange* table = [] {
    const py::object capsule =
        py::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
    auto* header =
        static_cast<dl::Header*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (header == nullptr) throw py::error_already_set();
    while (header != nullptr && header->version.major != 1) header = header->previous;
    if (header == nullptr) {
      throw py::import_error(
          "this torch has no DLPack exchange API of version 1; torch >= 2.11 has it");
    }
    return reinterpret_cast<const dl::Exchange*>(header);
  }();
  return *table;
}

[[noreturn]] inline void refuse(const std::string& name, const std::string& expected,
                                const std::string& got) {
  throw py::value_error(name + ": expected " + expected + ", got " + got);
}

// "[2, 3]"
template <class Sizes>
std::string text_of_sizes(const Sizes& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

inline std::string text_of(const dl::DataType& dtype) {
  const std::string bits = std::to_string(dtype.bits);
  if (dtype.lanes == 1) {
    if (dtype.code == dl::kInt) return "int" + bits;
    if (dtype.code == dl::kUInt) return "uint" + bits;
    if (dtype.code == dl::kFloat) return "float" + bits;
    if (dtype.code == dl::kBfloat) return "bfloat" + bits;
    if (dtype.code == dl::kComplex) return "complex" + bits;
    if (dtype.code == dl::kBool) return "bool";
  }
  return "DLPack dtype " + std::to_string(dtype.code) + " of " + bits + " bits and " +
         std::to_string(dtype.lanes) + " lanes";
}

inline std::string text_of(const dl::Device& device) {
  if (device.type == dl::kCpu) return "cpu";
  if (device.type == dl::kCuda) return "cuda:" + std::to_string(device.id);
  return "DLPack device type " + std::to_string(device.type);
}

// Method names of torch.Tensor as Python strings, created once.
struct MethodNames {
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* is_conj = PyUnicode_InternFromString("is_conj");
  PyObject* detach = PyUnicode_InternFromString("detach");
};

inline const MethodNames& method_names() {
  static const MethodNames names;
  return names;
}

inline py::object call(py::handle object, PyObject* method) {
  const auto result =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), method));
  if (!result) throw py::error_already_set();
  return result;
}

inline bool is_true(py::handle object, PyObject* method) {
  return call(object, method).ptr() == Py_True;
}

// Subclasses are not accepted, because some of them, such as FakeTensor, have no memory.
inline void require_tensor(const std::string& name, py::handle object) {
  static const PyObject* const types[] = {
      py::object(py::module_::import("torch").attr("Tensor")).release().ptr(),
      py::object(py::module_::import("torch").attr("nn").attr("Parameter")).release().ptr()};
  const auto* const type = reinterpret_cast<const PyObject*>(Py_TYPE(object.ptr()));
  if (type != types[0] && type != types[1]) {
    refuse(name, "a torch.Tensor", Py_TYPE(object.ptr())->tp_name);
  }
}

// A borrowed view of a tensor.
struct View {
  std::string name;  // of the argument, for errors
  dl::Tensor t;

  View(std::string argument, py::handle object) : name(std::move(argument)) {
    require_tensor(name, object);
    if (exchange().view_of_object(object.ptr(), &t) != 0) throw py::error_already_set();
    // torch negates and conjugates lazily: memory can differ from the tensor's values
    constexpr const char* kMaterialized = "a tensor with materialized values";
    if (is_true(object, method_names().is_neg)) {
      refuse(name, kMaterialized, "a lazily negated one; pass tensor.resolve_neg()");
    }
    if (t.dtype.code == dl::kComplex && is_true(object, method_names().is_conj)) {
      refuse(name, kMaterialized, "a lazily conjugated one; pass tensor.resolve_conj()");
    }
    if (t.data == nullptr && size() != 0) {
      refuse(name, "a tensor that holds data", "a null pointer for " + text_of_sizes(sizes()));
    }
  }

  std::vector<int64_t> sizes() const { return {t.shape, t.shape + t.ndim}; }

  // "[2, 3] float32"
  std::string shape_and_dtype() const { return text_of_sizes(sizes()) + " " + text_of(t.dtype); }

  int64_t size() const {
    int64_t n = 1;
    for (int32_t i = 0; i < t.ndim; ++i) n *= t.shape[i];
    return n;
  }

  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
  }

  bool has_dtype(uint8_t code, uint8_t bits) const {
    return t.dtype.code == code && t.dtype.bits == bits && t.dtype.lanes == 1;
  }

  bool has_shape(std::initializer_list<int64_t> shape) const {
    return t.ndim == static_cast<int32_t>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), t.shape);
  }

  void require_dimensions(int32_t count) const {
    if (t.ndim == count) return;
    refuse(name, std::to_string(count) + " dimensions", text_of_sizes(sizes()));
  }

  void require_shape(std::initializer_list<int64_t> shape) const {
    if (!has_shape(shape)) refuse(name, text_of_sizes(shape), text_of_sizes(sizes()));
  }

  // As require_shape, but the error names the first dimension that differs. `shape` must have as
  // many dimensions as the tensor.
  void require_each_size(std::initializer_list<int64_t> shape) const {
    const int64_t* const differs = std::mismatch(shape.begin(), shape.end(), t.shape).first;
    if (differs == shape.end()) return;
    const std::string dimension = std::to_string(differs - shape.begin());
    refuse(name, "size " + std::to_string(*differs) + " of dimension " + dimension,
           text_of_sizes(sizes()));
  }

  void require_contiguous() const {
    if (t.strides == nullptr || size() == 0) return;
    int64_t step = 1;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] != 1 && t.strides[i] != step) {
        const std::vector<int64_t> strides(t.strides, t.strides + t.ndim);
        refuse(name, "a contiguous tensor",
               text_of_sizes(sizes()) + " with strides " + text_of_sizes(strides));
      }
      step *= t.shape[i];
    }
  }

  void require_byte() const {
    if (has_dtype(dl::kBool, 8) || has_dtype(dl::kUInt, 8)) return;
    refuse(name, "bool or uint8", text_of(t.dtype));
  }

  void require_int32() const {
    if (!has_dtype(dl::kInt, 32)) refuse(name, "int32", text_of(t.dtype));
  }

  void require_dtype_of(const View& other) const {
    if (t.dtype.code == other.t.dtype.code && t.dtype.bits == other.t.dtype.bits) return;
    refuse(name, text_of(other.t.dtype) + ", the dtype of " + other.name, text_of(t.dtype));
  }

  void require_device_of(const View& other) const {
    if (t.device.type == other.t.device.type && t.device.id == other.t.device.id) return;
    refuse(name, text_of(other.t.device) + ", the device of " + other.name, text_of(t.device));
  }

  void require_cpu() const {
    if (t.device.type != dl::kCpu) refuse(name, "a tensor on the CPU", text_of(t.device));
  }

  void* stream() const {
    void* stream = nullptr;
    if (exchange().current_stream(t.device.type, t.device.id, &stream) != 0) {
      throw py::error_already_set();
    }
    return stream;
  }
};

}  // namespace sam2_fast
