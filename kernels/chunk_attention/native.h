#pragma once

#include <nanobind/nanobind.h>

void bind_chunk_attention(nanobind::module_& module);
