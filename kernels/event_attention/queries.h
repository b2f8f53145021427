// What the bindings and attention to events share: plain data, so that the engine (queries.inl) can be compiled once per
// instruction set without the copies meeting in the linker.

#pragma once

#include <cstdint>

namespace streamwise {

// Numbers of a vector, and n rounded up to whole vectors.
template <class T>
constexpr int64_t kPack = 32 / int64_t(sizeof(T));
template <class T>
constexpr int64_t whole(int64_t n) { return (n + kPack<T> - 1) / kPack<T> * kPack<T>; }

// Rows of numbers: [heads, times of all groups, ...], and [heads, sequences, events, ...].
template <class T>
struct OfTimes {
  T* at = nullptr;
  int64_t head = 0, row = 0;  // from one to the next
};
template <class T>
struct OfEvents {
  T* at = nullptr;
  int64_t head = 0, sequence = 0, row = 0;
};

// Rows beside the events: some of a table, and what a group adds to each of them.
template <class T>
struct Prompts {
  OfEvents<T> keys, values;        // of the table, [heads, prompts, rows, ...]; or null
  T *added_keys, *added_values;    // [heads, sequences, groups, ...]
};

// Groups of times, each of which see the same first events of a sequence, and the same prompts.
template <class T>
struct QueryTask {
  int64_t heads, sequences, groups, times;  // groups of a sequence, times of a group
  int64_t events, width, values_width, columns;
  int64_t table, rows, selected;            // prompts, rows of each, and how many a group selects
  OfTimes<const T> query, own;              // own: the key and then the value of each time; or null
  OfEvents<const T> keys, values;
  Prompts<const T> prompts;
  const int64_t* ids;                       // [sequences, groups, selected]
  const T *since, *fall;                    // [sequences, groups, times, since_row], [heads]; or null
  int64_t since_row;
  const int64_t* visible;                   // [sequences, groups]
  bool squash;                              // whether the hyperbolic tangent is taken of what is attended to
};

// Where things are in a row of scores or shares: those of prompts, that of the time itself, and the end.
template <class T>
struct Columns {
  int64_t prompts, own, all;
  Columns(const QueryTask<T>& t, int64_t seen)
      : prompts(whole<T>(seen)), own(prompts + whole<T>(t.selected * t.rows)), all(own + (t.own.at != nullptr ? kPack<T> : 0)) {}
};

// Keys, values and what groups add to prompts are filled; `fall` and the table of prompts are added to. All but those of
// times are contiguous.
template <class T>
struct QueryGradients {
  OfTimes<T> query, own;  // or null
  T *keys, *values, *fall, *prompt_keys, *prompt_values, *added_keys, *added_values;
};

}  // namespace streamwise
