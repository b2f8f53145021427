// What the bindings and the lookup of chunks share: plain data, so that the engine (engine.inl) can be compiled once
// per instruction set without the copies meeting in the linker.

#pragma once

#include <cstdint>

namespace streamwise::chunk_attention {

constexpr int64_t kQueries = 16;  // that go through the scan side by side
constexpr int64_t kBlock = 32;    // summaries that stay in the cache for all queries

enum class Storage : int64_t { same, bfloat16, int8 };

// One memory, and the queries that are made of it.
struct ScanTask {
  const void* summaries;    // [count, width], as `storage` says
  const float* scales;      // [count], what int8 summaries are multiplied with; or null
  const void* select;       // T [queries, width]
  const uint8_t* visible;   // [queries or 1, count], or null
  int64_t* sizes;           // [queries], scratch
  Storage storage;
  int64_t visible_stride, queries, count, width, k;
};

struct AttendTask {
  const void *ask, *logits;          // T [queries, heads, width], [queries, k]
  const int64_t* chunks;             // [queries, k], -1 for none
  const void *contents, *positions;  // T [count, length, width], [length, width] or null
  const int64_t* steps;              // [count], or null
  int64_t* sizes;                    // [k], scratch
  int64_t heads, k, length, width;
  bool joint;
};

template <class T>
struct Functions {
  // scratch: [queries], if they are few and summaries are stored as they are; else what native.cpp takes.
  void (*scan)(const ScanTask&, T* logits, int64_t* chunks, T* scratch);
  void (*scan_back)(const ScanTask&, const T* gradient, const int64_t* chunks, T* out);
  void (*attend)(const AttendTask&, int64_t query, T* pooled, T* shares, T* scratch);
  void (*attend_back)(const AttendTask&, int64_t query, const T* gradient, const T* shares, T* of_ask, T* of_logits,
                      T* scratch);
};

// Those of an instruction set; native.cpp.
Functions<float> float_functions(const char* instruction_set);
Functions<double> double_functions(const char* instruction_set);

}  // namespace streamwise::chunk_attention
