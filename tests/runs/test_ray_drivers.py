"""What a driver hears of its processes comes in any order, and all at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from streamwise.runs import partitioned, sweep, up_driver


class GoneError(Exception):
    pass


class Ray:
    """A Ray whose calls are numbers: one has died with its process, the other knows how far that was."""

    exceptions = SimpleNamespace(RayError=GoneError, RayTaskError=GoneError)

    def __init__(self, dead):
        self.dead = dead

    def wait(self, refs, **_):
        return list(refs), []

    def get(self, ref):
        if ref == self.dead:
            raise GoneError("it has died")
        if ref is None:
            raise ValueError("that is no call")


class Started:
    """A process whose start is call 9."""

    def __getattr__(self, name):
        return self

    def __call__(self, *_, **__):
        return self if not _ and __ else 9

    def remote(self, *_):
        return 9


def driver_of(module, ray, **attributes):
    driver = object.__new__(up_driver.Driver if module is up_driver else module._Driver)
    driver.ray = ray
    lost = []
    for name in ("_lost", "_failed"):
        setattr(driver, name, lambda *_, **__: lost.append(True))
    for name, value in attributes.items():
        setattr(driver, name, value)
    return driver, lost


@pytest.mark.parametrize(("call", "asked"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("module", [sweep, partitioned, up_driver], ids=lambda module: module.__name__)
def test_an_end_and_the_progress_before_it_may_come_together(module, call, asked):
    """In either order: it was once taken for granted that what was asked is still known after the end."""
    if module is up_driver:
        one = up_driver.Member(
            "a", None, None, None, actor=Started(), call=call, asked=asked, state="running"
        )
        driver, lost = driver_of(up_driver, Ray(call), members=[one], memories=[])
    elif module is sweep:
        one = sweep.Slot(Started(), call, job=SimpleNamespace(run=SimpleNamespace(name="a")), asked=asked)
        driver, lost = driver_of(sweep, Ray(call), slots=[one])
    else:
        one = partitioned.Slot(0, None, Started(), call, running=True, asked=asked)
        driver, lost = driver_of(partitioned, Ray(call), slots=[one])
    driver._wait()
    assert lost == [True]
    assert one.call == 9
    assert one.asked is None
