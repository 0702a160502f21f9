// Comparisons of Python objects that run for every frame, as native loops.
#include <initializer_list>
#include <string>

#include "bindings/tensor.h"

namespace sam2_fast {
namespace {

void require_equal_lengths(const char* names, std::initializer_list<size_t> lengths) {
  bool equal = true;
  for (const size_t length : lengths) equal = equal && length == *lengths.begin();
  if (equal) return;
  refuse(names, "equal lengths", text_of_sizes(lengths));
}

[[noreturn]] void refuse_type(const char* expected, PyObject* got) {
  throw py::type_error(std::string(expected) + ", got " + Py_TYPE(got)->tp_name);
}

// Whether groups[i][names[i]] is values[i], for all i.
bool same_members(const py::list& groups, const py::list& names, const py::list& values) {
  require_equal_lengths("groups, names, values", {groups.size(), names.size(), values.size()});
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(values.size()); i < count; ++i) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), i);
    if (!PyDict_Check(group)) refuse_type("groups: expected dictionaries", group);
    PyObject* member = PyDict_GetItemWithError(group, PyList_GET_ITEM(names.ptr(), i));
    if (member == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (member != PyList_GET_ITEM(values.ptr(), i)) return false;
  }
  return true;
}

// Calls a method without arguments or reads an attribute, given by its descriptor. Returns a new
// reference, or null with a Python error set.
PyObject* result_of(PyObject* descriptor, PyObject* object) {
  if (Py_TYPE(descriptor) == &PyGetSetDescr_Type) {
    const auto* getset = reinterpret_cast<PyGetSetDescrObject*>(descriptor)->d_getset;
    return getset->get(object, getset->closure);
  }
  const auto* method = reinterpret_cast<PyMethodDescrObject*>(descriptor)->d_method;
  return method->ml_meth(object, nullptr);
}

long long integer(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

long long integer_of(PyObject* descriptor, PyObject* object) {
  const py::object result = py::reinterpret_steal<py::object>(result_of(descriptor, object));
  if (!result) throw py::error_already_set();
  return integer(result.ptr());
}

bool is_method_without_arguments(PyObject* descriptor) {
  return Py_TYPE(descriptor) == &PyMethodDescr_Type &&
         reinterpret_cast<PyMethodDescrObject*>(descriptor)->d_method->ml_flags == METH_NOARGS;
}

// Whether the address and the version of tensors[i] are addresses[i] and versions[i], for all i.
// Versions that are None are not compared. Both are compared in one loop, because fetching the
// tensor takes most of the time.
bool same_tensors(const py::object& address, const py::object& version, const py::list& tensors,
                  const py::list& addresses, const py::list& versions) {
  require_equal_lengths("tensors, addresses, versions",
                        {tensors.size(), addresses.size(), versions.size()});
  if (!is_method_without_arguments(address.ptr()) ||
      Py_TYPE(version.ptr()) != &PyGetSetDescr_Type) {
    throw py::type_error(
        std::string("address, version: expected a method without arguments and an attribute, of a "
                    "class written in C, got ") +
        Py_TYPE(address.ptr())->tp_name + " and " + Py_TYPE(version.ptr())->tp_name);
  }
  PyTypeObject* owner = PyDescr_TYPE(address.ptr());
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(tensors.size()); i < count; ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), i);
    if (!PyObject_TypeCheck(tensor, owner)) {
      refuse_type("tensors: expected instances of the descriptors' class", tensor);
    }
    PyObject* expected_version = PyList_GET_ITEM(versions.ptr(), i);
    if (expected_version != Py_None &&
        integer_of(version.ptr(), tensor) != integer(expected_version)) {
      return false;
    }
    const long long expected_address = integer(PyList_GET_ITEM(addresses.ptr(), i));
    if (integer_of(address.ptr(), tensor) != expected_address) return false;
  }
  return true;
}

// Whether all dictionaries are empty.
bool all_empty(const py::list& dictionaries) {
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(dictionaries.size()); i < count; ++i) {
    PyObject* dictionary = PyList_GET_ITEM(dictionaries.ptr(), i);
    if (!PyDict_Check(dictionary)) refuse_type("dictionaries: expected dictionaries", dictionary);
    if (PyDict_GET_SIZE(dictionary) != 0) return false;
  }
  return true;
}

}  // namespace

void register_fingerprint(py::module_& module) {
  module.def("same_members", &same_members, py::arg("groups"), py::arg("names"), py::arg("values"),
             "Whether groups[i][names[i]] is values[i], for all i.");
  module.def(
      "same_tensors", &same_tensors, py::arg("address"), py::arg("version"), py::arg("tensors"),
      py::arg("addresses"), py::arg("versions"),
      "Whether the tensors have these addresses and versions; a version of None is not compared.");
  module.def("all_empty", &all_empty, py::arg("dictionaries"),
             "Whether all dictionaries are empty.");
}

}  // namespace sam2_fast
