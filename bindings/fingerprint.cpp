// Comparisons of Python objects that are made for every frame, without the interpreter's loop.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// Whether groups[i][names[i]] is values[i], for all i.
bool same_members(const py::list& groups, const py::list& names, const py::list& values) {
  if (groups.size() != values.size() || names.size() != values.size())
    throw py::value_error("groups, names, values: expected equal lengths");
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(values.size()); i < count; ++i) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), i);
    if (!PyDict_Check(group)) throw py::type_error("groups: expected dictionaries");
    PyObject* found = PyDict_GetItemWithError(group, PyList_GET_ITEM(names.ptr(), i));
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (found != PyList_GET_ITEM(values.ptr(), i)) return false;
  }
  return true;
}

// The result of a method without arguments or of an attribute, through its descriptor.
PyObject* result_of(PyObject* descriptor, PyObject* object) {
  if (Py_TYPE(descriptor) == &PyGetSetDescr_Type) {
    const auto* getset = reinterpret_cast<PyGetSetDescrObject*>(descriptor)->d_getset;
    return getset->get(object, getset->closure);
  }
  const auto* method = reinterpret_cast<PyMethodDescrObject*>(descriptor)->d_method;
  return method->ml_meth(object, nullptr);
}

bool is_method_without_arguments(PyObject* descriptor) {
  return Py_TYPE(descriptor) == &PyMethodDescr_Type &&
         reinterpret_cast<PyMethodDescrObject*>(descriptor)->d_method->ml_flags == METH_NOARGS;
}

// Whether descriptor(objects[i]) == expected[i], for all i; integers of 64 bits.
bool same_integers(const py::object& descriptor, const py::list& objects, const py::list& expected) {
  if (objects.size() != expected.size()) throw py::value_error("objects, expected: expected equal lengths");
  const bool known = Py_TYPE(descriptor.ptr()) == &PyGetSetDescr_Type || is_method_without_arguments(descriptor.ptr());
  if (!known) throw py::type_error("descriptor: expected an attribute or a method without arguments, of a class written in C");
  PyTypeObject* owner = PyDescr_TYPE(descriptor.ptr());
  for (Py_ssize_t i = 0, count = static_cast<Py_ssize_t>(objects.size()); i < count; ++i) {
    PyObject* object = PyList_GET_ITEM(objects.ptr(), i);
    if (!PyObject_TypeCheck(object, owner)) throw py::type_error("objects: expected instances of the descriptor's class");
    const py::object found = py::reinterpret_steal<py::object>(result_of(descriptor.ptr(), object));
    if (!found) throw py::error_already_set();
    const long long is = PyLong_AsLongLong(found.ptr()), was = PyLong_AsLongLong(PyList_GET_ITEM(expected.ptr(), i));
    if ((is == -1 || was == -1) && PyErr_Occurred()) throw py::error_already_set();
    if (is != was) return false;
  }
  return true;
}

}  // namespace

namespace sam2_fast {

void register_fingerprint(py::module_& module) {
  module.def("same_members", &same_members, py::arg("groups"), py::arg("names"), py::arg("values"),
             "Whether groups[i][names[i]] is values[i], for all i.");
  module.def("same_integers", &same_integers, py::arg("descriptor"), py::arg("objects"), py::arg("expected"),
             "Whether descriptor of objects[i] is expected[i], for all i. The descriptor: an attribute or a method without arguments.");
}

}  // namespace sam2_fast
