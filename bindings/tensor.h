// Zero-copy views of torch tensors through torch's DLPack C exchange API: no torch headers, no
// torch library.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace sam2_fast {

namespace py = pybind11;

// Own declarations of the stable DLPack ABI (version 1). See
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

// torch's table, looked up once.
inline const dl::Exchange& exchange() {
  static const dl::Exchange* table = [] {
    const py::object capsule =
        py::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
    auto* header =
        static_cast<dl::Header*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (header == nullptr) throw py::error_already_set();
    while (header != nullptr && header->version.major != 1) header = header->previous;
    if (header == nullptr)
      throw py::import_error(
          "this torch offers no DLPack exchange API of version 1; torch >= 2.11 does");
    return reinterpret_cast<const dl::Exchange*>(header);
  }();
  return *table;
}

[[noreturn]] inline void refuse(const char* name, const std::string& expected,
                                const std::string& got) {
  throw py::value_error(std::string(name) + ": expected " + expected + ", got " + got);
}

// Method names of torch.Tensor as Python strings that are made once.
struct BitNames {
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* is_conj = PyUnicode_InternFromString("is_conj");
};

inline const BitNames& bit_names() {
  static const BitNames names;
  return names;
}

inline bool is_true(py::handle object, PyObject* method) {
  const py::object answer =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), method));
  if (!answer) throw py::error_already_set();
  return answer.ptr() == Py_True;
}

// A borrowed view. `object` must be exactly a torch.Tensor that holds data: the Python side has
// checked the type, since a FakeTensor would crash here.
struct View {
  const char* name;
  dl::Tensor t;

  View(const char* argument, py::handle object) : name(argument) {
    if (exchange().view_of_object(object.ptr(), &t) != 0) throw py::error_already_set();
    // torch negates and conjugates lazily: the memory of such a tensor holds other numbers than the
    // tensor
    if (is_true(object, bit_names().is_neg)) {
      refuse(name, "a tensor whose memory holds its numbers",
             "a lazily negated one; pass tensor.resolve_neg()");
    }
    if (t.dtype.code == dl::kComplex && is_true(object, bit_names().is_conj)) {
      refuse(name, "a tensor whose memory holds its numbers",
             "a lazily conjugated one; pass tensor.resolve_conj()");
    }
    if (t.data == nullptr && size() != 0) refuse(name, "a tensor that holds data", "one without");
  }

  int64_t size() const {
    int64_t n = 1;
    for (int32_t i = 0; i < t.ndim; ++i) n *= t.shape[i];
    return n;
  }

  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
  }

  void want_shape3(int64_t count, int64_t height, int64_t width) const {
    if (t.ndim == 3 && t.shape[0] == count && t.shape[1] == height && t.shape[2] == width) return;
    refuse(name,
           "[" + std::to_string(count) + ", " + std::to_string(height) + ", " +
               std::to_string(width) + "]",
           "another shape");
  }

  void want_contiguous() const {
    if (t.strides == nullptr) return;
    int64_t step = 1;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] != 1 && t.strides[i] != step && size() != 0)
        refuse(name, "a contiguous tensor", "one with gaps");
      step *= t.shape[i];
    }
  }

  void want_byte() const {
    const bool ok = t.dtype.lanes == 1 && t.dtype.bits == 8 &&
                    (t.dtype.code == dl::kBool || t.dtype.code == dl::kUInt);
    if (!ok) refuse(name, "bool or uint8", "another dtype");
  }

  void want_int32() const {
    if (t.dtype.code != dl::kInt || t.dtype.bits != 32 || t.dtype.lanes != 1)
      refuse(name, "int32", "another dtype");
  }

  void want_device(const View& other) const {
    if (t.device.type != other.t.device.type || t.device.id != other.t.device.id) {
      refuse(name, std::string("the device of ") + other.name, "another device");
    }
  }

  void* stream() const {
    void* stream = nullptr;
    if (exchange().current_stream(t.device.type, t.device.id, &stream) != 0)
      throw py::error_already_set();
    return stream;
  }
};

}  // namespace sam2_fast
