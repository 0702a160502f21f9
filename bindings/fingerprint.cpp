// Comparisons of Python objects that run for every frame, as native loops.
#include <initializer_list>
#include <string>
#include <string_view>

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

long long integer(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

PyObject* item(PyObject* list, Py_ssize_t index) { return PyList_GET_ITEM(list, index); }

void require_dictionary(PyObject* object) {
  if (!PyDict_Check(object)) refuse_type("expected dictionaries", object);
}

// Whether groups[i][names[i]] is values[i], for all i.
bool same_members(const py::list& groups, const py::list& names, const py::list& values) {
  require_equal_lengths("groups, names, values", {groups.size(), names.size(), values.size()});
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(values.size()); i < count; ++i) {
    PyObject* group = item(groups.ptr(), i);
    require_dictionary(group);
    PyObject* member = PyDict_GetItemWithError(group, item(names.ptr(), i));
    if (member == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (member != item(values.ptr(), i)) return false;
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
    if (position + 1 >= count || item(entries, position) != key ||
        item(entries, position + 1) != value) {
      return false;
    }
  }
  return true;
}

// Whether the dictionaries contain these keys and values, and no others, in this order.
bool same_dictionaries(const py::list& dictionaries, const py::list& entries) {
  Py_ssize_t position = 0;
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(dictionaries.size()); i < count; ++i) {
    PyObject* dictionary = item(dictionaries.ptr(), i);
    require_dictionary(dictionary);
    if (!same_entries(dictionary, entries.ptr(), position)) return false;
  }
  return position == static_cast<Py_ssize_t>(entries.size());
}

PyTypeObject* as_class(PyObject* object) {
  if (!PyType_Check(object)) refuse_type("expected classes", object);
  return reinterpret_cast<PyTypeObject*>(object);
}

// The number that CPython gives to the attributes of a class and its bases; 0: it has none now.
// Every change of an attribute ends its validity.
unsigned int version_of(PyTypeObject* kind) {
#ifdef Py_TPFLAGS_VALID_VERSION_TAG
  if (!PyType_HasFeature(kind, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return kind->tp_version_tag;
}

py::list class_versions(const py::list& classes) {
  py::list versions;
  for (const py::handle kind : classes) versions.append(version_of(as_class(kind.ptr())));
  return versions;
}

bool same_versions(const py::list& classes, const py::list& versions) {
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(classes.size()); i < count; ++i) {
    const unsigned int version = version_of(as_class(item(classes.ptr(), i)));
    if (version == 0 || version != integer(item(versions.ptr(), i))) return false;
  }
  return true;
}

// `same_dictionaries` for the attributes of classes. It need not compare them if the classes have
// the `versions` of `class_versions`, which an empty list never equals.
bool same_class_attributes(const py::list& classes, const py::list& entries,
                           const py::list& versions) {
  if (versions.size() == classes.size() && same_versions(classes, versions)) return true;
  Py_ssize_t position = 0;
  for (const py::handle handle : classes) {
    PyTypeObject* kind = as_class(handle.ptr());
#if PY_VERSION_HEX >= 0x030C0000
    const py::object attributes = py::reinterpret_steal<py::object>(PyType_GetDict(kind));
#else
    const py::object attributes = py::reinterpret_borrow<py::object>(kind->tp_dict);
#endif
    if (!attributes || !same_entries(attributes.ptr(), entries.ptr(), position)) return false;
  }
  return position == static_cast<Py_ssize_t>(entries.size());
}

// Whether modules[i] is an instance of exactly classes[i] with lengths[i] attributes (int32), for
// all i, and all dictionaries of `empty` are empty.
bool same_instances(const py::list& modules, const py::list& classes, const py::list& attributes,
                    const py::bytes& lengths, const py::list& empty) {
  const std::string_view bytes = lengths;
  const auto* expected = reinterpret_cast<const int32_t*>(bytes.data());
  require_equal_lengths(
      "modules, classes, attributes, lengths",
      {modules.size(), classes.size(), attributes.size(), bytes.size() / sizeof(int32_t)});
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(modules.size()); i < count; ++i) {
    const auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(item(modules.ptr(), i)));
    if (kind != item(classes.ptr(), i)) return false;
    PyObject* dictionary = item(attributes.ptr(), i);
    require_dictionary(dictionary);
    if (PyDict_GET_SIZE(dictionary) != expected[i]) return false;
  }
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(empty.size()); i < count; ++i) {
    PyObject* dictionary = item(empty.ptr(), i);
    require_dictionary(dictionary);
    if (PyDict_GET_SIZE(dictionary) != 0) return false;
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

// All comparisons of a `ModuleState` in one call.
bool same_state(const py::list& modules, const py::list& classes, const py::list& attributes,
                const py::bytes& lengths, const py::list& empty, const py::list& dictionaries,
                const py::list& entries, const py::list& groups, const py::list& names,
                const py::list& values, const py::list& bases, const py::list& code,
                const py::list& versions) {
  return same_instances(modules, classes, attributes, lengths, empty) &&
         same_dictionaries(dictionaries, entries) && same_members(groups, names, values) &&
         same_class_attributes(bases, code, versions);
}

}  // namespace

void register_fingerprint(py::module_& module) {
  module.def("same_members", &same_members, py::arg("groups"), py::arg("names"), py::arg("values"),
             "Whether groups[i][names[i]] is values[i], for all i.");
  module.def("same_dictionaries", &same_dictionaries, py::arg("dictionaries"), py::arg("entries"),
             "Whether the dictionaries have these keys and values, compared by identity in order.");
  module.def("class_versions", &class_versions, py::arg("classes"),
             "A number for the attributes of each class and its bases; 0 if unknown.");
  module.def("same_class_attributes", &same_class_attributes, py::arg("classes"),
             py::arg("entries"), py::arg("versions"),
             "Whether the classes have these versions, or else these attributes, by identity.");
  module.def("same_instances", &same_instances, py::arg("modules"), py::arg("classes"),
             py::arg("attributes"), py::arg("lengths"), py::arg("empty"),
             "Whether modules have these classes and numbers of attributes; `empty` is empty.");
  module.def("same_state", &same_state, py::arg("modules"), py::arg("classes"),
             py::arg("attributes"), py::arg("lengths"), py::arg("empty"), py::arg("dictionaries"),
             py::arg("entries"), py::arg("groups"), py::arg("names"), py::arg("values"),
             py::arg("bases"), py::arg("code"), py::arg("versions"),
             "same_instances, same_dictionaries, same_members and same_class_attributes.");
  module.def(
      "same_tensors", &same_tensors, py::arg("address"), py::arg("version"), py::arg("tensors"),
      py::arg("addresses"), py::arg("versions"),
      "Whether the tensors have these addresses and versions; a version of None is not compared.");
}

}  // namespace sam2_fast
