// Bindings of the streaming step, called by the extension module.

#pragma once

#include <nanobind/nanobind.h>

void bind_stream_step(nanobind::module_& module);
