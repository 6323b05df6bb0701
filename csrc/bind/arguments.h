// Turns the arguments of one call from Python into the fields of an operand struct. A binding reads
// the fields in the order of Python's positional arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <stdexcept>
#include <type_traits>

namespace fastsample {

class Arguments {
 public:
  explicit Arguments(const pybind11::args& values) : values_(values.ptr()) {}

  // Fills the fields one after the other. For a pointer field the argument is an integer: torch's
  // address of the tensor, 0 for an operand that was not passed.
  template <typename... Fields>
  void read(Fields&... fields) {
    (read_one(fields), ...);
  }

  void require_end() const {
    if (next_ != PyTuple_GET_SIZE(values_))
      throw pybind11::type_error("native: too many arguments");
  }

 private:
  template <typename Field>
  void read_one(Field& field) {
    if (next_ == PyTuple_GET_SIZE(values_))
      throw pybind11::type_error("native: an argument is missing");
    PyObject* value = PyTuple_GET_ITEM(values_, next_++);
    bool fits = true;
    if constexpr (std::is_pointer_v<Field>) {
      field = reinterpret_cast<Field>(PyLong_AsSize_t(value));
    } else if constexpr (std::is_floating_point_v<Field>) {
      field = PyFloat_AsDouble(value);
    } else if constexpr (std::is_same_v<Field, bool>) {
      field = PyObject_IsTrue(value) == 1;
    } else if constexpr (std::is_unsigned_v<Field>) {
      const size_t number = PyLong_AsSize_t(value);
      field = static_cast<Field>(number);
      fits = field == number;
    } else {  // signed integers and enumerations
      const long long number = PyLong_AsLongLong(value);
      field = static_cast<Field>(number);
      fits = static_cast<long long>(field) == number;
    }
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    if (!fits) throw std::invalid_argument("native: an argument is too large for its field");
  }

  PyObject* values_;  // a tuple that the caller of the binding keeps alive
  Py_ssize_t next_ = 0;
};

// Python has checked shapes, dtypes and devices; the bindings only guard memory. A null pointer (a
// fake or meta tensor) is an error, never a crash.
inline void require_storage(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (!p)
      throw std::invalid_argument("native: a tensor without storage (fake or meta) was passed");
  }
}

}  // namespace fastsample
