// The native extension, streamwise.kernels._native.
//
// It reports what it was built as and what this processor can do, so that `streamwise doctor` and the choice
// between kernel variants rest on one answer.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "chunk_attention/native.h"
#include "event_models/native.h"
#include "event_recurrence/native.h"
#include "stream_step/native.h"

namespace nb = nanobind;

namespace {

// The widest instruction set that both this processor and the operating system support, of those that
// stream_step/native.cpp is compiled for: every extension that it asks for is asked about here.
std::string instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return "baseline";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return "avx512";
  return "avx2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Native kernels of streamwise.";
  // A run that is interrupted leaves objects to the end of the interpreter, which is no leak.
  nb::set_leak_warnings(false);
  module.def("version", [] { return std::string(STREAMWISE_VERSION); },
             "The version of streamwise this extension was built with.");
  module.def("instruction_set", &instruction_set,
             "The widest instruction set usable here: 'avx512', 'avx2', 'neon' or 'baseline'.");
  module.def("compiler", &compiler, "The compiler that built this extension.");
  bind_chunk_attention(module);
  bind_event_models(module);
  bind_event_recurrence(module);
  bind_stream_step(module);
}
