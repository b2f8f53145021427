// The recurrence of the neural Hawkes process on the CPU, forth and back, and states at times between its steps.
//
// Contract: arrays are contiguous, of the CPU and of one dtype, float32 or float64; lengths and places are int64. All
// that does not fit is refused, by its name, before anything is read. The interpreter is free for other threads
// meanwhile.

#include "native.h"

#include "recurrence.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nb = nanobind;

// Nothing below a target pragma may include a header.
namespace streamwise::event_recurrence {
namespace baseline {
#include "engine.inl"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#define STREAMWISE_LANES 8
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "engine.inl"
}
#pragma GCC pop_options
#undef STREAMWISE_LANES
#define STREAMWISE_LANES 16
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#include "engine.inl"
}
#pragma GCC pop_options
#undef STREAMWISE_LANES
#elif defined(__x86_64__) && defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#define STREAMWISE_LANES 8
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
namespace avx2 {
#include "engine.inl"
}
#pragma clang attribute pop
#undef STREAMWISE_LANES
#define STREAMWISE_LANES 16
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
namespace avx512 {
#include "engine.inl"
}
#pragma clang attribute pop
#undef STREAMWISE_LANES
#endif
}  // namespace streamwise::event_recurrence

namespace {

using namespace streamwise::event_recurrence;

template <class T>
Functions<T> functions_for(const std::string& instruction_set) {
#ifdef STREAMWISE_MULTIVERSION
  if (instruction_set == "avx512") return avx512::functions<T>();
  if (instruction_set == "avx2") return avx2::functions<T>();
#endif
  (void)instruction_set;
  return baseline::functions<T>();
}

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <class T>
const char* name_of() {
  if (std::is_same_v<T, int64_t>) return "int64";
  return std::is_same_v<T, double> ? "float64" : "float32";
}

template <class T>
Array<T> array_of(nb::handle given, const char* name, size_t dimensions) {
  Array<T> array;
  if (!nb::try_cast(given, array, false))
    throw nb::type_error((std::string(name) + " is not a contiguous array of " + name_of<std::remove_const_t<T>>() +
                          " on the CPU, or cannot be written to").c_str());
  if (array.ndim() != dimensions)
    throw nb::value_error((std::string(name) + " must have " + std::to_string(dimensions) + " dimensions").c_str());
  return array;
}

// The memory of an array, which its argument keeps alive.
template <class T>
T* memory_of(nb::handle given, const char* name, std::initializer_list<int64_t> shape) {
  const Array<T> array = array_of<T>(given, name, shape.size());
  std::string expected;
  bool fits = true;
  size_t i = 0;
  for (int64_t size : shape) {
    expected += (i == 0 ? "[" : ", ") + std::to_string(size);
    fits = fits && int64_t(array.shape(i++)) == size;
  }
  if (!fits) throw nb::value_error((std::string(name) + " must be " + expected + "]").c_str());
  return array.data();
}

void check_within(const int64_t* at, int64_t count, int64_t low, int64_t high, const char* name) {
  for (int64_t i = 0; i < count; ++i)
    if (at[i] < low || at[i] > high)
      throw nb::value_error((std::string(name) + " must be from " + std::to_string(low) + " to " + std::to_string(high)).c_str());
}

// Run something with a zero of the dtype of an argument that may be of either.
template <class Run>
void for_type_of(nb::handle given, const char* name, Run run) {
  Array<const float> single;
  Array<const double> twice;
  if (nb::try_cast(given, single, false)) run(float());
  else if (nb::try_cast(given, twice, false)) run(double());
  else throw nb::type_error((std::string(name) + " is not a contiguous array of float32 or float64 on the CPU").c_str());
}

template <class T>
Parts<T> parts_of(const nb::handle (&given)[4], const char* const (&names)[4], int64_t count, int64_t steps, int64_t width) {
  T* at[4];
  for (int i = 0; i < 4; ++i) at[i] = memory_of<T>(given[i], names[i], {count, steps, width});
  return {at[0], at[1], at[2], at[3]};
}

constexpr const char* kParts[] = {"cells", "targets", "decays", "outputs"};
constexpr const char* kOfParts[] = {"of_cells", "of_targets", "of_decays", "of_outputs"};

// `order` is where the order of the sequences is kept.
template <class T>
Recurrence<T> recurrence_of(nb::handle weight, nb::handle gaps, nb::handle lengths, std::vector<int64_t>& order) {
  const Array<const T> of_gaps = array_of<const T>(gaps, "gaps", 2);
  Recurrence<T> s{};
  s.count = int64_t(of_gaps.shape(0)), s.steps = int64_t(of_gaps.shape(1)), s.gaps = of_gaps.data();
  s.width = int64_t(array_of<const T>(weight, "weight", 2).shape(1));
  s.weight = memory_of<const T>(weight, "weight", {kGates * s.width, s.width});
  s.lengths = memory_of<const int64_t>(lengths, "lengths", {s.count});
  check_within(s.lengths, s.count, 0, s.steps, "lengths");
  order.resize(size_t(s.count));
  std::iota(order.begin(), order.end(), int64_t(0));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s.lengths[a] > s.lengths[b]; });
  s.order = order.data();
  return s;
}

void recur(nb::handle inputs, nb::handle weight, nb::handle gaps, nb::handle lengths, nb::handle cells, nb::handle targets,
           nb::handle decays, nb::handle outputs, nb::handle states, nb::handle kept, const std::string& instruction_set) {
  for_type_of(gaps, "gaps", [&](auto zero) {
    using T = decltype(zero);
    std::vector<int64_t> order;
    const Recurrence<T> s = recurrence_of<T>(weight, gaps, lengths, order);
    const T* of_inputs = memory_of<const T>(inputs, "inputs", {s.count, s.steps, kGates * s.width});
    const Parts<T> parts = parts_of<T>({cells, targets, decays, outputs}, kParts, s.count, s.steps, s.width);
    if (states.is_none() != kept.is_none()) throw nb::value_error("states and kept must both be arrays, or both be None");
    const bool forgotten = kept.is_none();
    T* to_states = forgotten ? nullptr : memory_of<T>(states, "states", {s.count, s.steps, s.width});
    T* to_kept = forgotten ? nullptr : memory_of<T>(kept, "kept", {s.count, s.steps, kKept * s.width});
    const Functions<T> run = functions_for<T>(instruction_set);
    nb::gil_scoped_release free;
    run.recur(s, of_inputs, parts, to_states, to_kept);
  });
}

void recur_back(nb::handle weight, nb::handle gaps, nb::handle lengths, nb::handle cells, nb::handle targets,
                nb::handle decays, nb::handle outputs, nb::handle kept, nb::handle of_cells, nb::handle of_targets,
                nb::handle of_decays, nb::handle of_outputs, nb::handle of_inputs, const std::string& instruction_set) {
  for_type_of(gaps, "gaps", [&](auto zero) {
    using T = decltype(zero);
    std::vector<int64_t> order;
    const Recurrence<T> s = recurrence_of<T>(weight, gaps, lengths, order);
    const auto parts = parts_of<const T>({cells, targets, decays, outputs}, kParts, s.count, s.steps, s.width);
    const auto gradient =
        parts_of<const T>({of_cells, of_targets, of_decays, of_outputs}, kOfParts, s.count, s.steps, s.width);
    const T* of_kept = memory_of<const T>(kept, "kept", {s.count, s.steps, kKept * s.width});
    T* out = memory_of<T>(of_inputs, "of_inputs", {s.count, s.steps, kGates * s.width});
    const Functions<T> run = functions_for<T>(instruction_set);
    nb::gil_scoped_release free;
    run.recur_back(s, parts, of_kept, gradient, out);
  });
}

template <class T>
Asked<T> asked_of(nb::handle cells, nb::handle seen, nb::handle gaps) {
  const Array<const T> of_gaps = array_of<const T>(gaps, "gaps", 3), of_cells = array_of<const T>(cells, "cells", 3);
  Asked<T> s{};
  s.count = int64_t(of_gaps.shape(0)), s.groups = int64_t(of_gaps.shape(1)), s.times = int64_t(of_gaps.shape(2));
  s.steps = int64_t(of_cells.shape(1)), s.width = int64_t(of_cells.shape(2));
  s.gaps = of_gaps.data();
  s.seen = memory_of<const int64_t>(seen, "seen", {s.count, s.groups});
  check_within(s.seen, s.count * s.groups, 0, s.steps - 1, "seen");
  return s;
}

void ask(nb::handle cells, nb::handle targets, nb::handle decays, nb::handle outputs, nb::handle seen, nb::handle gaps,
         nb::handle states, const std::string& instruction_set) {
  for_type_of(gaps, "gaps", [&](auto zero) {
    using T = decltype(zero);
    const Asked<T> s = asked_of<T>(cells, seen, gaps);
    const auto parts = parts_of<const T>({cells, targets, decays, outputs}, kParts, s.count, s.steps, s.width);
    T* out = memory_of<T>(states, "states", {s.count, s.groups, s.times, s.width});
    const Functions<T> run = functions_for<T>(instruction_set);
    nb::gil_scoped_release free;
    run.ask(s, parts, out);
  });
}

void ask_back(nb::handle cells, nb::handle targets, nb::handle decays, nb::handle outputs, nb::handle seen, nb::handle gaps,
              nb::handle of_states, nb::handle of_cells, nb::handle of_targets, nb::handle of_decays, nb::handle of_outputs,
              const std::string& instruction_set) {
  for_type_of(gaps, "gaps", [&](auto zero) {
    using T = decltype(zero);
    const Asked<T> s = asked_of<T>(cells, seen, gaps);
    const auto parts = parts_of<const T>({cells, targets, decays, outputs}, kParts, s.count, s.steps, s.width);
    const T* gradient = memory_of<const T>(of_states, "of_states", {s.count, s.groups, s.times, s.width});
    const Parts<T> out = parts_of<T>({of_cells, of_targets, of_decays, of_outputs}, kOfParts, s.count, s.steps, s.width);
    const Functions<T> run = functions_for<T>(instruction_set);
    nb::gil_scoped_release free;
    run.ask_back(s, parts, gradient, out);
  });
}

}  // namespace

void bind_event_recurrence(nb::module_& module) {
  using nb::arg;
  module.def("event_recurrence", &recur, arg("inputs"), arg("weight"), arg("gaps"), arg("lengths"), arg("cells"),
             arg("targets"), arg("decays"), arg("outputs"), arg("states").none(), arg("kept").none(), arg("instruction_set"));
  module.def("event_recurrence_back", &recur_back, arg("weight"), arg("gaps"), arg("lengths"), arg("cells"), arg("targets"),
             arg("decays"), arg("outputs"), arg("kept"), arg("of_cells"), arg("of_targets"), arg("of_decays"),
             arg("of_outputs"), arg("of_inputs"), arg("instruction_set"));
  module.def("event_states", &ask, arg("cells"), arg("targets"), arg("decays"), arg("outputs"), arg("seen"), arg("gaps"),
             arg("states"), arg("instruction_set"));
  module.def("event_states_back", &ask_back, arg("cells"), arg("targets"), arg("decays"), arg("outputs"), arg("seen"),
             arg("gaps"), arg("of_states"), arg("of_cells"), arg("of_targets"), arg("of_decays"), arg("of_outputs"),
             arg("instruction_set"));
}
