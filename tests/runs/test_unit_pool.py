"""What is said of units while they run; how they run is tested by the commands that use them."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich.console import Console

from streamwise.runs.loop import StopRequest
from streamwise.runs.unit_pool import Pool, _Driver, _Slot


class Unit(NamedTuple):
    """Ten parts of work."""

    name: str


def test_the_time_left_is_that_of_the_parts_which_are_not_given_up(tmp_path):
    units = [Unit(name) for name in ("done", "at work", "waits", "given up")]
    pool = Pool(tmp_path, object, (), lambda unit: 10, "task", str)
    driver = _Driver(pool, units, units[1:], Console(), StopRequest())
    slot = _Slot(None, unit=units[1])
    assert driver._left([slot]) == ""  # nothing was done yet that says how long a part takes
    driver.began, slot.done, driver.failed = time.monotonic() - 60.0, 5, {"given up": "its process died"}
    assert driver._left([slot]) == "; about 0:03:00 left"  # five parts took a minute, fifteen are left
