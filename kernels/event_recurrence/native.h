#pragma once

#include <nanobind/nanobind.h>

void bind_event_recurrence(nanobind::module_& module);
