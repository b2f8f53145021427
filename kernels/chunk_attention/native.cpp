// Looking chunks up on the CPU: a scan of all summaries that keeps the best, and attention inside those.
//
// Contract: arrays are contiguous and of the CPU; B memories with Q queries each. Shapes and the numbers of chunks
// are checked before anything is read. The interpreter is free for other threads meanwhile.

#include "native.h"

#include "lookup.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;

// Nothing below a target pragma may include a header.
#define STREAMWISE_VECTOR_BYTES 16  // of a register
namespace streamwise::chunk_attention {
namespace baseline {
#include "engine.inl"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#undef STREAMWISE_VECTOR_BYTES
#define STREAMWISE_VECTOR_BYTES 32
namespace avx2 {
#include "engine.inl"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
#undef STREAMWISE_VECTOR_BYTES
#define STREAMWISE_VECTOR_BYTES 64
namespace avx512 {
#include "engine.inl"
}
#pragma GCC pop_options
#elif defined(__x86_64__) && defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#undef STREAMWISE_VECTOR_BYTES
#define STREAMWISE_VECTOR_BYTES 32
namespace avx2 {
#include "engine.inl"
}
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
#undef STREAMWISE_VECTOR_BYTES
#define STREAMWISE_VECTOR_BYTES 64
namespace avx512 {
#include "engine.inl"
}
#pragma clang attribute pop
#endif
}  // namespace streamwise::chunk_attention

namespace streamwise::chunk_attention {
namespace {

template <class T>
Functions<T> functions_for(const std::string& instruction_set) {
#ifdef STREAMWISE_MULTIVERSION
  if (instruction_set == "avx512") return avx512::functions<T>();
  if (instruction_set == "avx2") return avx2::functions<T>();
#endif
  (void)instruction_set;
  return baseline::functions<T>();
}

}  // namespace

Functions<float> float_functions(const char* instruction_set) { return functions_for<float>(instruction_set); }
Functions<double> double_functions(const char* instruction_set) { return functions_for<double>(instruction_set); }

}  // namespace streamwise::chunk_attention

namespace {

using namespace streamwise::chunk_attention;

template <class T, int dimensions>
using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
template <class T, int dimensions>
using Maybe = std::optional<Array<const T, dimensions>>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

template <class A>
bool shaped(const A& array, std::initializer_list<int64_t> shape) {
  size_t i = 0;
  for (int64_t size : shape)
    if (int64_t(array.shape(i++)) != size) return false;
  return true;
}

void check_chunks(const Array<const int64_t, 3>& chunks, int64_t count) {
  const int64_t* at = chunks.data();
  for (size_t i = 0; i < chunks.size(); ++i)
    require(at[i] >= -1 && at[i] < count, "chunks holds the number of a chunk that is not there");
}

template <class T, class S>
ScanTask scan_task(const Array<const T, 3>& select, const Array<const S, 3>& summaries, const Maybe<float, 2>& scales,
                   const Maybe<uint8_t, 3>& visible, int64_t k) {
  const int64_t B = int64_t(select.shape(0)), Q = int64_t(select.shape(1)), D = int64_t(select.shape(2));
  const int64_t M = int64_t(summaries.shape(1));
  require(shaped(summaries, {B, M, D}), "summaries must be [memories, chunks, width], as select is [memories, queries, width]");
  require(!scales || shaped(*scales, {B, M}), "scales must be [memories, chunks]");
  const int64_t rows = visible ? int64_t(visible->shape(1)) : 1;
  require(!visible || (shaped(*visible, {B, rows, M}) && (rows == 1 || rows == Q)), "visible must be [memories, queries or 1, chunks]");
  require(k >= 0, "k must be 0 or more");
  ScanTask task{};
  task.storage = sizeof(S) == 2 ? Storage::bfloat16 : sizeof(S) == 1 ? Storage::int8 : Storage::same;
  task.visible_stride = rows == 1 ? 0 : M;
  task.queries = Q, task.count = M, task.width = D, task.k = k < M ? k : M;
  return task;
}

template <class T, class S>
void at_memory(ScanTask& task, int64_t b, const Array<const T, 3>& select, const Array<const S, 3>& summaries,
               const Maybe<float, 2>& scales, const Maybe<uint8_t, 3>& visible) {
  task.select = select.data() + b * task.queries * task.width;
  task.summaries = summaries.data() + b * task.count * task.width;
  task.scales = scales ? scales->data() + b * task.count : nullptr;
  task.visible = visible ? visible->data() + b * int64_t(visible->shape(1)) * task.count : nullptr;
}

template <class T, class S>
void scan(Array<const T, 3> select, Array<const S, 3> summaries, Maybe<float, 2> scales, Maybe<uint8_t, 3> visible, int64_t k,
          Array<int64_t, 3> chunks, Array<T, 3> logits, const std::string& instruction_set) {
  ScanTask task = scan_task(select, summaries, scales, visible, k);
  const int64_t B = int64_t(select.shape(0)), Q = task.queries, K = task.k;
  require(shaped(chunks, {B, Q, K}) && shaped(logits, {B, Q, K}), "chunks and logits must be [memories, queries, read]");
  const Functions<T> run = functions_for<T>(instruction_set);
  const int64_t padded = (Q + kQueries - 1) / kQueries * kQueries;
  std::vector<T> scratch(size_t(padded * (task.width + 1) + kBlock * task.width));
  std::vector<int64_t> sizes(static_cast<size_t>(Q));
  task.sizes = sizes.data();
  nb::gil_scoped_release free;
  for (int64_t b = 0; b < B; ++b) {
    at_memory(task, b, select, summaries, scales, visible);
    run.scan(task, logits.data() + b * Q * K, chunks.data() + b * Q * K, scratch.data());
  }
}

template <class T, class S>
void scan_back(Array<const T, 3> gradient, Array<const int64_t, 3> chunks, Array<const S, 3> summaries, Maybe<float, 2> scales,
               Array<T, 3> out, const std::string& instruction_set) {
  const Array<const T, 3> select(out);
  ScanTask task = scan_task(select, summaries, scales, Maybe<uint8_t, 3>(), int64_t(chunks.shape(2)));
  const int64_t B = int64_t(out.shape(0)), Q = task.queries, K = task.k;
  require(shaped(chunks, {B, Q, K}) && shaped(gradient, {B, Q, K}), "chunks and gradient must be [memories, queries, read]");
  check_chunks(chunks, task.count);
  const Functions<T> run = functions_for<T>(instruction_set);
  nb::gil_scoped_release free;
  for (size_t i = 0; i < out.size(); ++i) out.data()[i] = T(0);
  for (int64_t b = 0; b < B; ++b) {
    at_memory(task, b, select, summaries, scales, Maybe<uint8_t, 3>());
    run.scan_back(task, gradient.data() + b * Q * K, chunks.data() + b * Q * K, out.data() + b * Q * task.width);
  }
}

// The memory of a task, checked: its own pointers are those of memory 0.
template <class T>
AttendTask attend_task(const Array<const T, 4>& ask, const Array<const T, 3>& logits, const Array<const int64_t, 3>& chunks,
                       const Array<const T, 4>& contents, const Maybe<T, 2>& positions, const Maybe<int64_t, 2>& steps,
                       bool joint) {
  const int64_t B = int64_t(ask.shape(0)), Q = int64_t(ask.shape(1)), D = int64_t(ask.shape(3));
  const int64_t M = int64_t(contents.shape(1)), C = int64_t(contents.shape(2)), K = int64_t(chunks.shape(2));
  require(shaped(contents, {B, M, C, D}), "contents must be [memories, chunks, steps, width], as ask is [memories, queries, heads, width]");
  require(shaped(chunks, {B, Q, K}) && shaped(logits, {B, Q, K}), "chunks and logits must be [memories, queries, read]");
  require(!positions || shaped(*positions, {C, D}), "positions must be [steps, width]");
  require(!steps || shaped(*steps, {B, M}), "steps must be [memories, chunks]");
  check_chunks(chunks, M);
  for (size_t i = 0; steps && i < steps->size(); ++i)
    require(steps->data()[i] >= 0 && steps->data()[i] <= C, "steps holds more steps than a chunk has room for");
  AttendTask task{};
  task.ask = ask.data(), task.logits = logits.data(), task.chunks = chunks.data(), task.contents = contents.data();
  task.positions = positions ? positions->data() : nullptr, task.steps = steps ? steps->data() : nullptr;
  task.heads = int64_t(ask.shape(2)), task.k = K, task.length = C, task.width = D, task.joint = joint;
  return task;
}

// The same task for memory b.
template <class T>
AttendTask of_memory(AttendTask task, int64_t b, int64_t queries, int64_t count) {
  task.ask = static_cast<const T*>(task.ask) + b * queries * task.heads * task.width;
  task.logits = static_cast<const T*>(task.logits) + b * queries * task.k;
  task.chunks += b * queries * task.k;
  task.contents = static_cast<const T*>(task.contents) + b * count * task.length * task.width;
  if (task.steps != nullptr) task.steps += b * count;
  return task;
}

template <class T>
void attend(Array<const T, 4> ask, Array<const T, 3> logits, Array<const int64_t, 3> chunks, Array<const T, 4> contents,
            Maybe<T, 2> positions, Maybe<int64_t, 2> steps, bool joint, Array<T, 4> pooled, Array<T, 5> shares,
            const std::string& instruction_set) {
  AttendTask whole = attend_task(ask, logits, chunks, contents, positions, steps, joint);
  const int64_t B = int64_t(ask.shape(0)), Q = int64_t(ask.shape(1)), M = int64_t(contents.shape(1));
  const int64_t row = whole.heads * whole.width, shared = whole.heads * whole.k * whole.length;
  require(shaped(pooled, {B, Q, whole.heads, whole.width}), "pooled must be [memories, queries, heads, width]");
  require(shaped(shares, {B, Q, whole.heads, whole.k, whole.length}), "shares must be [memories, queries, heads, read, steps]");
  const Functions<T> run = functions_for<T>(instruction_set);
  std::vector<T> scratch(size_t(whole.k + whole.heads * whole.length));
  std::vector<int64_t> sizes(static_cast<size_t>(whole.k));
  whole.sizes = sizes.data();
  nb::gil_scoped_release free;
  for (int64_t b = 0; b < B; ++b) {
    const AttendTask task = of_memory<T>(whole, b, Q, M);
    for (int64_t q = 0; q < Q; ++q)
      run.attend(task, q, pooled.data() + (b * Q + q) * row, shares.data() + (b * Q + q) * shared, scratch.data());
  }
}

template <class T>
void attend_back(Array<const T, 4> gradient, Array<const T, 5> shares, Array<const T, 3> logits, Array<const int64_t, 3> chunks,
                 Array<const T, 4> contents, Maybe<T, 2> positions, Maybe<int64_t, 2> steps, bool joint, Array<T, 4> of_ask,
                 Array<T, 3> of_logits, const std::string& instruction_set) {
  AttendTask whole = attend_task(gradient, logits, chunks, contents, positions, steps, joint);
  const int64_t B = int64_t(gradient.shape(0)), Q = int64_t(gradient.shape(1)), M = int64_t(contents.shape(1));
  const int64_t row = whole.heads * whole.width, shared = whole.heads * whole.k * whole.length;
  require(shaped(of_ask, {B, Q, whole.heads, whole.width}), "of_ask must be [memories, queries, heads, width]");
  require(shaped(of_logits, {B, Q, whole.k}), "of_logits must be [memories, queries, read]");
  require(shaped(shares, {B, Q, whole.heads, whole.k, whole.length}), "shares must be [memories, queries, heads, read, steps]");
  const Functions<T> run = functions_for<T>(instruction_set);
  std::vector<T> scratch(size_t(3 * whole.k + whole.heads * whole.length * (whole.k + 1)));
  std::vector<int64_t> sizes(static_cast<size_t>(whole.k));
  whole.sizes = sizes.data();
  nb::gil_scoped_release free;
  for (int64_t b = 0; b < B; ++b) {
    const AttendTask task = of_memory<T>(whole, b, Q, M);
    for (int64_t q = 0; q < Q; ++q)
      run.attend_back(task, q, gradient.data() + (b * Q + q) * row, shares.data() + (b * Q + q) * shared,
                      of_ask.data() + (b * Q + q) * row, of_logits.data() + (b * Q + q) * whole.k, scratch.data());
  }
}

template <class T>
void bind(nb::module_& module) {
  using nb::arg;
  module.def("chunk_scan", &scan<T, T>, arg("select"), arg("summaries"), arg("scales").none(), arg("visible").none(), arg("k"),
             arg("chunks"), arg("logits"), arg("instruction_set"));
  module.def("chunk_scan_back", &scan_back<T, T>, arg("gradient"), arg("chunks"), arg("summaries"), arg("scales").none(),
             arg("out"), arg("instruction_set"));
  module.def("chunk_attend", &attend<T>, arg("ask"), arg("logits"), arg("chunks"), arg("contents"), arg("positions").none(),
             arg("steps").none(), arg("joint"), arg("pooled"), arg("shares"), arg("instruction_set"));
  module.def("chunk_attend_back", &attend_back<T>, arg("gradient"), arg("shares"), arg("logits"), arg("chunks"), arg("contents"),
             arg("positions").none(), arg("steps").none(), arg("joint"), arg("of_ask"), arg("of_logits"),
             arg("instruction_set"));
}

}  // namespace

void bind_chunk_attention(nb::module_& module) {
  using nb::arg;
  bind<float>(module);
  bind<double>(module);
  module.def("chunk_scan", &scan<float, uint16_t>, arg("select"), arg("summaries"), arg("scales").none(), arg("visible").none(),
             arg("k"), arg("chunks"), arg("logits"), arg("instruction_set"));
  module.def("chunk_scan", &scan<float, int8_t>, arg("select"), arg("summaries"), arg("scales").none(), arg("visible").none(),
             arg("k"), arg("chunks"), arg("logits"), arg("instruction_set"));
  module.def("chunk_scan_back", &scan_back<float, uint16_t>, arg("gradient"), arg("chunks"), arg("summaries"),
             arg("scales").none(), arg("out"), arg("instruction_set"));
  module.def("chunk_scan_back", &scan_back<float, int8_t>, arg("gradient"), arg("chunks"), arg("summaries"),
             arg("scales").none(), arg("out"), arg("instruction_set"));
}
