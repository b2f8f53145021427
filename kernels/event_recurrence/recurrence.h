// What the bindings and the recurrence share: plain data, so that the engine (engine.inl) can be compiled once per
// instruction set without the copies meeting in the linker. reference.py says what everything is.

#pragma once

#include <cstdint>

namespace streamwise::event_recurrence {

constexpr int64_t kGates = 7, kKept = 8;

// What steps left behind, [sequences, steps, width] each.
template <class T>
struct Parts {
  T *cells, *targets, *decays, *outputs;
};

template <class T>
struct Recurrence {
  int64_t count, steps, width;
  const int64_t *lengths, *order;  // [count]: in [0, steps]; and the sequences, the longest first
  const T *weight, *gaps;          // [7 width, width]; [count, steps]
};

// Times that are asked about, in groups that see the same steps.
template <class T>
struct Asked {
  int64_t count, steps, width, groups, times;
  const int64_t* seen;  // [count, groups], in [0, steps)
  const T* gaps;        // [count, groups, times]
};

template <class T>
struct Functions {
  // states: [count, steps, width], what the gates of each step were made of; kept: [count, steps, 8 width], for the way
  // back. Both or neither are null.
  void (*recur)(const Recurrence<T>&, const T* inputs, const Parts<T>&, T* states, T* kept);
  // From the gradient of the parts to that of the inputs.
  void (*recur_back)(const Recurrence<T>&, const Parts<const T>&, const T* kept, const Parts<const T>& of_parts, T* of_inputs);
  void (*ask)(const Asked<T>&, const Parts<const T>&, T* states);  // [count, groups, times, width]
  void (*ask_back)(const Asked<T>&, const Parts<const T>&, const T* of_states, const Parts<T>& of_parts);
};

}  // namespace streamwise::event_recurrence
