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

// Compares the entries of a dictionary with entries[position ...], which are keys and values in
// turn, and advances the position. Objects are compared by identity.
bool same_entries(PyObject* dictionary, PyObject* entries, Py_ssize_t& position) {
  const Py_ssize_t count = PyList_GET_SIZE(entries);
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  for (Py_ssize_t cursor = 0; PyDict_Next(dictionary, &cursor, &key, &value); position += 2) {
    if (position + 1 >= count || PyList_GET_ITEM(entries, position) != key ||
        PyList_GET_ITEM(entries, position + 1) != value) {
      return false;
    }
  }
  return true;
}

// Whether objects[i] is an instance of exactly classes[i], for all i.
bool same_classes(const py::list& objects, const py::list& classes) {
  require_equal_lengths("objects, classes", {objects.size(), classes.size()});
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(objects.size()); i < count; ++i) {
    const auto* actual = reinterpret_cast<PyObject*>(Py_TYPE(PyList_GET_ITEM(objects.ptr(), i)));
    if (actual != PyList_GET_ITEM(classes.ptr(), i)) return false;
  }
  return true;
}

// Whether the dictionaries contain these keys and values, and no others, in this order.
bool same_dictionaries(const py::list& dictionaries, const py::list& entries) {
  Py_ssize_t position = 0;
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(dictionaries.size()); i < count; ++i) {
    PyObject* dictionary = PyList_GET_ITEM(dictionaries.ptr(), i);
    if (!PyDict_Check(dictionary)) refuse_type("dictionaries: expected dictionaries", dictionary);
    if (!same_entries(dictionary, entries.ptr(), position)) return false;
  }
  return position == static_cast<Py_ssize_t>(entries.size());
}

// `same_dictionaries` for the attributes of classes.
bool same_class_attributes(const py::list& classes, const py::list& entries) {
  Py_ssize_t position = 0;
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(classes.size()); i < count; ++i) {
    PyObject* type = PyList_GET_ITEM(classes.ptr(), i);
    if (!PyType_Check(type)) refuse_type("classes: expected classes", type);
#if PY_VERSION_HEX >= 0x030C0000
    const py::object attributes =
        py::reinterpret_steal<py::object>(PyType_GetDict(reinterpret_cast<PyTypeObject*>(type)));
#else
    const py::object attributes =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyTypeObject*>(type)->tp_dict);
#endif
    if (!attributes || !same_entries(attributes.ptr(), entries.ptr(), position)) return false;
  }
  return position == static_cast<Py_ssize_t>(entries.size());
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

// Whether dictionaries[i] has lengths[i] entries, for all i.
bool same_lengths(const py::list& dictionaries, const py::list& lengths) {
  require_equal_lengths("dictionaries, lengths", {dictionaries.size(), lengths.size()});
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(dictionaries.size()); i < count; ++i) {
    PyObject* dictionary = PyList_GET_ITEM(dictionaries.ptr(), i);
    if (!PyDict_Check(dictionary)) refuse_type("dictionaries: expected dictionaries", dictionary);
    if (PyDict_GET_SIZE(dictionary) != integer(PyList_GET_ITEM(lengths.ptr(), i))) return false;
  }
  return true;
}

}  // namespace

void register_fingerprint(py::module_& module) {
  module.def("same_members", &same_members, py::arg("groups"), py::arg("names"), py::arg("values"),
             "Whether groups[i][names[i]] is values[i], for all i.");
  module.def("same_classes", &same_classes, py::arg("objects"), py::arg("classes"),
             "Whether objects[i] is an instance of exactly classes[i], for all i.");
  module.def("same_dictionaries", &same_dictionaries, py::arg("dictionaries"), py::arg("entries"),
             "Whether the dictionaries have these keys and values, compared by identity in order.");
  module.def("same_class_attributes", &same_class_attributes, py::arg("classes"),
             py::arg("entries"),
             "Whether the classes have these attributes, compared by identity in order.");
  module.def(
      "same_tensors", &same_tensors, py::arg("address"), py::arg("version"), py::arg("tensors"),
      py::arg("addresses"), py::arg("versions"),
      "Whether the tensors have these addresses and versions; a version of None is not compared.");
  module.def("same_lengths", &same_lengths, py::arg("dictionaries"), py::arg("lengths"),
             "Whether dictionaries[i] has lengths[i] entries, for all i.");
}

}  // namespace sam2_fast
