#pragma once

#include <nanobind/nanobind.h>

void bind_event_models(nanobind::module_& module);
