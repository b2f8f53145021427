"""The recurrence of the neural Hawkes process: the kernel against its reference, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels import native_info
from streamwise.kernels.event_recurrence import Recurrence, recur, states
from streamwise.kernels.stream_step import INSTRUCTION_SETS

needs_native = pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", ["reference", pytest.param("auto", marks=needs_native, id="native")]
)
WIDTHS = st.sampled_from([1, 3, 6, 16, 17, 32, 40])
DTYPES = st.sampled_from([torch.float32, torch.float64])
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
GAPS = (0.0, 1e-6, 0.5, 3.0, 1e4, 1e30)


def draw(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def case(seed, sequences=5, steps=7, width=6, dtype=torch.float64, scale=1.0):
    """Random arguments of `recur`; gaps from zero to where nothing is left, lengths from zero on."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(GAPS), (sequences, steps), generator=generator)
    return {
        "inputs": scale * draw(generator, sequences, steps, 7 * width, dtype=dtype),
        "weight": draw(generator, 7 * width, width, dtype=dtype) / width**0.5,
        "gaps": torch.tensor(GAPS, dtype=dtype)[chosen],
        "lengths": torch.randint(steps + 1, (sequences,), generator=generator),
    }


def asked(seed, sequences=5, steps=7, groups=4, times=3, dtype=torch.float64):
    """Random arguments of `states` beside a recurrence; several groups may see the same step."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(GAPS), (sequences, groups, times), generator=generator)
    return {
        "seen": torch.randint(steps, (sequences, groups), generator=generator),
        "gaps": torch.tensor(GAPS, dtype=dtype)[chosen],
    }


def both_ways(function, tensors, implementation, seed=0):
    """Return what a function gives, and the gradients of a random sum of it."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found = function(*tensors, implementation=implementation)
    parts = [found] if isinstance(found, torch.Tensor) else list(found)
    generator = torch.Generator().manual_seed(seed)
    total = sum((part * draw(generator, *part.shape, dtype=part.dtype)).sum() for part in parts)
    return [part.detach() for part in parts], torch.autograd.grad(total, tensors)


def assert_same(native, reference):
    """Each number to the tolerance of its dtype, in units of the largest of its array or of one."""
    for mine, theirs in zip(native, reference, strict=True):
        largest = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=TOLERANCES[theirs.dtype] * largest)


@needs_native
@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**30),
    sequences=st.integers(0, 9),
    steps=st.integers(1, 9),
    width=WIDTHS,
    dtype=DTYPES,
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_native_steps_and_their_gradients_are_those_of_the_reference(
    seed, sequences, steps, width, dtype, scale
):
    made = case(seed, sequences, steps, width, dtype, scale)
    gaps, lengths = made["gaps"], made["lengths"]

    def function(inputs, weight, implementation):
        return recur(inputs, weight, gaps, lengths, implementation=implementation)

    tensors = made["inputs"], made["weight"]
    native, reference = (both_ways(function, tensors, kind, seed) for kind in ("auto", "reference"))
    assert_same(native[0], reference[0])
    assert_same(native[1], reference[1])
    with torch.no_grad():
        alone = recur(**made)
    assert all(torch.equal(a, b) for a, b in zip(alone, native[0], strict=True))


@needs_native
@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**30),
    sequences=st.integers(0, 4),
    steps=st.integers(1, 6),
    groups=st.integers(0, 5),
    times=st.integers(0, 5),
    width=WIDTHS,
    dtype=DTYPES,
)
def test_native_states_and_their_gradients_are_those_of_the_reference(
    seed, sequences, steps, groups, times, width, dtype
):
    generator = torch.Generator().manual_seed(seed)
    parts = [draw(generator, sequences, steps, width, dtype=dtype) for _ in range(4)]
    parts[2] = parts[2].abs()  # decays
    chosen = asked(seed, sequences, steps, groups, times, dtype)

    def function(*parts, implementation):
        return states(Recurrence(*parts), **chosen, implementation=implementation)

    native, reference = (both_ways(function, parts, kind, seed) for kind in ("auto", "reference"))
    assert_same(native[0], reference[0])
    assert_same(native[1], reference[1])


@IMPLEMENTATIONS
def test_gradients_are_those_of_finite_differences(implementation):
    made = case(3, sequences=3, steps=4, width=3)
    made["gaps"].clamp_(max=3.0)
    made["lengths"] = torch.tensor([4, 0, 2])
    inputs, weight = (made.pop(name).requires_grad_() for name in ("inputs", "weight"))
    chosen = asked(3, sequences=3, steps=4)
    chosen["gaps"].clamp_(max=3.0)

    def function(inputs, weight):
        events = recur(inputs, weight, **made, implementation=implementation)
        return *events, states(events, **chosen, implementation=implementation)

    assert torch.autograd.gradcheck(function, (inputs, weight))


@IMPLEMENTATIONS
def test_pads_are_zeros_and_nothing_of_them_is_looked_at(implementation):
    made = case(4, sequences=6, dtype=torch.float32)
    made["lengths"][:3] = torch.tensor([0, 7, 3])
    pads = torch.arange(7) >= made["lengths"][:, None]
    found = recur(**made, implementation=implementation)
    for part in found:
        assert (part[pads] == 0.0).all()
        assert (part[~pads] != 0.0).any()
    made["inputs"] = made["inputs"].masked_fill(pads[..., None], 7.0).requires_grad_()
    made["gaps"] = made["gaps"].masked_fill(pads, 7.0)
    changed = recur(**made, implementation=implementation)
    assert all(torch.equal(*pair) for pair in zip(changed, found, strict=True))
    sum(part.square().sum() for part in changed).backward()
    assert (made["inputs"].grad[pads] == 0.0).all()


@IMPLEMENTATIONS
def test_a_sequence_does_not_depend_on_the_others_of_its_batch(implementation):
    made = case(5, sequences=11, steps=9, width=20)
    found = recur(**made, implementation=implementation)
    for b in range(11):
        alone = {name: tensor if name == "weight" else tensor[b : b + 1] for name, tensor in made.items()}
        for part, of_all in zip(recur(**alone, implementation=implementation), found, strict=True):
            torch.testing.assert_close(part[0], of_all[b], rtol=1e-13, atol=1e-13)


@IMPLEMENTATIONS
def test_a_cell_goes_from_where_the_step_left_it_to_its_target(implementation):
    made = case(6)
    made["lengths"][:] = 7
    events = recur(**made, implementation=implementation)
    steps = torch.arange(7).expand(5, 7)
    gaps = torch.tensor([0.0, 1e30], dtype=torch.float64).expand(5, 7, 2)
    found = states(events, steps, gaps, implementation=implementation)
    torch.testing.assert_close(found[:, :, 0], events.outputs * events.cells.tanh(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[:, :, 1], events.outputs * events.targets.tanh(), rtol=1e-12, atol=1e-12)


@needs_native
def test_a_number_that_is_none_stays_one_in_its_native_sequence():
    made = case(7, sequences=4, dtype=torch.float32)
    made["lengths"][:] = 7
    made["inputs"][1, 2] = torch.nan
    for part in recur(**made):
        assert part[1, 2:].isnan().all()
        assert part[[0, 2, 3]].isfinite().all()
        assert part[1, :2].isfinite().all()


@needs_native
def test_arrays_that_are_not_contiguous_are_taken_by_native_code_as_they_are():
    made = case(8, width=4)
    wide = torch.cat([torch.ones_like(made["weight"]), made["weight"]], 1)
    turned = made["inputs"].transpose(0, 1).contiguous().transpose(0, 1)
    found = recur(turned, wide[:, 4:], made["gaps"], made["lengths"])
    assert all(torch.equal(*pair) for pair in zip(found, recur(**made), strict=True))


@needs_native
def test_what_there_is_no_native_code_for_is_left_to_the_reference():
    made = case(9)
    made["gaps"] = made["gaps"].clamp(max=3.0).requires_grad_()
    made["lengths"][:] = 7
    recur(**made).cells.sum().backward()
    assert (made["gaps"].grad[:, 1:] != 0.0).any()
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in case(9).items()}
    assert recur(**half).cells.dtype == torch.bfloat16


def sets_of_here():
    info = native_info()
    if info is None or info.instruction_set not in INSTRUCTION_SETS:
        return INSTRUCTION_SETS[:1]
    return INSTRUCTION_SETS[: INSTRUCTION_SETS.index(info.instruction_set) + 1]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("instruction_set", sets_of_here())
def test_every_native_instruction_set_gives_the_same(monkeypatch, instruction_set, dtype):
    import streamwise.kernels.event_recurrence as module
    from streamwise.kernels import _native

    made, chosen = case(10, width=19, dtype=dtype), asked(10, dtype=dtype)

    def function(inputs, weight, implementation):
        events = recur(inputs, weight, made["gaps"], made["lengths"], implementation=implementation)
        return *events, states(events, **chosen, implementation=implementation)

    tensors = made["inputs"], made["weight"]
    expected = both_ways(function, tensors, "reference")
    monkeypatch.setattr(module, "_native", lambda: (_native, instruction_set))
    found = both_ways(function, tensors, "auto")
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


def arguments_of(name):
    """What a native function takes for 2 sequences of 3 steps, 2 wide, of which 4 x 5 times are asked."""
    floats = {"inputs": (2, 3, 14), "weight": (14, 2), "kept": (2, 3, 16), "states": (2, 3, 2)}
    floats |= dict.fromkeys(("cells", "targets", "decays", "outputs"), (2, 3, 2))
    floats |= dict.fromkeys(("of_cells", "of_targets", "of_decays", "of_outputs"), (2, 3, 2))
    floats |= {"gaps": (2, 3), "of_inputs": (2, 3, 14)}
    if name.startswith("event_states"):
        floats |= {"gaps": (2, 4, 5), "states": (2, 4, 5, 2), "of_states": (2, 4, 5, 2)}
    parts = ["cells", "targets", "decays", "outputs"]
    names = {
        "event_recurrence": ["inputs", "weight", "gaps", "lengths", *parts, "states", "kept"],
        "event_recurrence_back": [
            "weight", "gaps", "lengths", *parts, "kept", *(f"of_{part}" for part in parts), "of_inputs",
        ],
        "event_states": [*parts, "seen", "gaps", "states"],
        "event_states_back": [*parts, "seen", "gaps", "of_states", *(f"of_{part}" for part in parts)],
    }[name]  # fmt: skip
    integers = {"lengths": torch.tensor([3, 1]), "seen": torch.zeros(2, 4, dtype=torch.int64)}
    return {name: integers[name] if name in integers else torch.zeros(floats[name]) for name in names}


@needs_native
@pytest.mark.parametrize(
    "name", ["event_recurrence", "event_recurrence_back", "event_states", "event_states_back"]
)
def test_native_code_names_the_argument_that_does_not_fit(name):
    from streamwise.kernels import _native

    call, arguments = getattr(_native, name), arguments_of(name)
    call(**arguments, instruction_set="baseline")
    for argument, tensor in arguments.items():
        other = torch.float64 if tensor.is_floating_point() else torch.int32
        longer = torch.cat([tensor, tensor], -1)
        five_dimensional = tensor.flatten()[None, None, None, None]
        # The dtype is that of the gaps, and sizes are those of some arrays: others then do not fit.
        expected = r"\w+" if argument in ("gaps", "cells", "weight") else argument
        for wrong in (longer, five_dimensional, tensor.to(other), longer[..., ::2], "no array"):
            with pytest.raises((TypeError, ValueError), match=rf"^{expected} (is not|must)"):
                call(**arguments | {argument: wrong}, instruction_set="baseline")


@needs_native
def test_native_code_refuses_steps_that_are_not_there():
    from streamwise.kernels import _native

    for name, argument, values in (
        ("event_recurrence", "lengths", ([4, 0], [-1, 0])),
        ("event_recurrence_back", "lengths", ([4, 0], [-1, 0])),
        ("event_states", "seen", ([[0, 0, 0, 3]] * 2, [[-1, 0, 0, 0]] * 2)),
        ("event_states_back", "seen", ([[0, 0, 0, 3]] * 2, [[-1, 0, 0, 0]] * 2)),
    ):
        for value in values:
            changed = arguments_of(name) | {argument: torch.tensor(value)}
            with pytest.raises(ValueError, match=f"{argument} must be from 0 to"):
                getattr(_native, name)(**changed, instruction_set="baseline")
    changed = arguments_of("event_recurrence") | {"kept": None}
    with pytest.raises(ValueError, match="states and kept"):
        _native.event_recurrence(**changed, instruction_set="baseline")
