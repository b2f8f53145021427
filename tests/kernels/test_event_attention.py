"""Attention of times to events: the kernel against the definition, and what nobody sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels import native_info
from streamwise.kernels.event_attention import Prompts, attend, log_ages, operators
from streamwise.kernels.stream_step import INSTRUCTION_SETS

pytestmark = pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")


@pytest.fixture(autouse=True, params=[torch.float64, torch.float32], ids=["double", "float"])
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def case(seed, *, heads=2, sequences=3, groups=4, times=5, events=11, width=8, shared=False, alone=False,
         fall=True, prompts=True):  # fmt: skip
    """Arguments of `attend`. shared: queries that all heads have. alone: times that see not themselves."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.get_default_dtype())

    asked_width = width + 3 if shared else width
    own = 0 if alone else asked_width + width
    least = 1 if alone and not prompts else 0
    visible = torch.randint(least, events + 1, (sequences, groups), generator=generator)
    at = draw(sequences, groups, times, asked_width) if shared else None
    asked = draw(heads, sequences, groups, times, own + (0 if shared else asked_width))
    seconds = torch.rand(sequences, events, generator=generator, dtype=torch.float64).cumsum(1)
    later = events * torch.rand(sequences, groups, times, generator=generator, dtype=torch.float64)
    table = Prompts(
        draw(heads, 6, 3, asked_width),
        draw(heads, 6, 3, width),
        torch.randint(6, (sequences, groups, 2), generator=generator),
        draw(heads, sequences, groups, asked_width),
        draw(heads, sequences, groups, width),
    )
    return {
        "asked": asked,
        "at": at,
        "keys": draw(heads, sequences, events, asked_width),
        "values": draw(heads, sequences, events, width),
        "since": log_ages(seconds, later, visible, 0.5) if fall else None,
        "visible": visible,
        "fall": draw(heads).abs() if fall else None,
        "prompts": table if prompts else None,
    }


def learned(arguments):
    prompts = arguments["prompts"]
    parts = [arguments[name] for name in ("asked", "keys", "values", "fall")]
    parts += [] if prompts is None else [part for part in prompts if part.is_floating_point()]
    return [part for part in parts if part is not None]


def tolerance():
    return {"rtol": 1e-11, "atol": 1e-12} if torch.get_default_dtype() == torch.float64 else {
        "rtol": 1e-4, "atol": 2e-5,
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), heads=st.integers(1, 3), sequences=st.integers(1, 3), groups=st.integers(1, 4),
    times=st.integers(1, 9), events=st.integers(1, 20), width=st.sampled_from([8, 16, 24]),
    shared=st.booleans(), alone=st.booleans(), fall=st.booleans(), prompts=st.booleans(),
    squash=st.booleans(),
)  # fmt: skip
def test_the_kernel_and_its_gradients_are_those_of_the_definition(seed, shared, alone, squash, **sizes):
    arguments = {**case(seed, shared=shared, alone=alone and not shared, **sizes), "squash": squash}
    leaves = [part.requires_grad_() for part in learned(arguments)]
    found, expected = (attend(**arguments, implementation=by) for by in ("auto", "reference"))
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, expected, **tolerance())
    gradients = [torch.autograd.grad((of * weights).sum(), leaves) for of in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **tolerance())
    with torch.no_grad():
        assert torch.equal(attend(**arguments), found)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_finite_differences(shared, dtype):
    if dtype != torch.float64:
        pytest.skip("finite differences need double")
    arguments = case(0, sequences=2, groups=2, times=2, events=3, shared=shared)
    leaves = [part.requires_grad_() for part in learned(arguments)]
    assert torch.autograd.gradcheck(lambda *_: attend(**arguments, squash=shared), leaves)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_finds_the_same(instruction_set, monkeypatch):
    if INSTRUCTION_SETS.index(instruction_set) > INSTRUCTION_SETS.index(native_info().instruction_set):
        pytest.skip("this processor has no such instructions")
    native, _ = operators._native()
    monkeypatch.setattr(operators, "_native", lambda: (native, instruction_set))
    arguments = case(1)
    leaves = [part.requires_grad_() for part in learned(arguments)]
    found, expected = (attend(**arguments, implementation=by) for by in ("auto", "reference"))
    torch.testing.assert_close(found, expected, **tolerance())
    gradients = [torch.autograd.grad(of.square().sum(), leaves) for of in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **tolerance())


def test_what_is_not_seen_is_not_looked_at():
    arguments = case(2)
    leaves = [part.requires_grad_() for part in learned(arguments)]
    before = attend(**arguments)
    gradients = torch.autograd.grad(before.sum(), leaves)
    unseen = torch.arange(11) >= arguments["visible"].amax(1)[:, None]
    assert unseen.any()
    for name in ("keys", "values"):
        arguments[name] = arguments[name].detach().masked_fill(unseen[..., None], torch.nan).requires_grad_()
    arguments["since"] = arguments["since"].clone()
    arguments["since"][..., :11].masked_fill_(unseen[:, None, None], 1e6)
    after = attend(**arguments)
    assert torch.equal(after, before)
    for one, other in zip(torch.autograd.grad(after.sum(), learned(arguments)), gradients, strict=True):
        assert torch.equal(one, other)


def test_ages_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    gaps = torch.exp(6.0 * torch.randn(3, 13, generator=generator, dtype=torch.float64))
    events, visible = 1.5e9 + gaps.cumsum(1), torch.randint(14, (3, 4), generator=generator)
    asked = events[:, :4, None] + torch.tensor([-1.0, 0.0, 1e-6, 1.0, 1e9])
    found, expected = (
        log_ages(events, asked, visible, 100.0, implementation=by) for by in ("auto", "reference")
    )
    seen = (torch.arange(13) < visible[..., None, None]).expand(3, 4, 5, 13)
    length = expected.shape[-1]
    small = {torch.float64: 1e-14, torch.float32: 3e-7}[torch.get_default_dtype()]
    one, other = (of[..., :length][seen[..., :length]] for of in (found, expected))
    torch.testing.assert_close(one, other, rtol=small, atol=0.0)


def test_arguments_that_do_not_fit_are_refused():
    for name, wrong, message in (
        ("visible", torch.full((3, 4), 12), "more events than there are"),
        ("visible", torch.full((3, 5), 1), "since must be"),
        ("values", torch.zeros(2, 3, 10, 8), "values must be"),
        ("fall", None, "come together"),
        ("since", torch.zeros(3, 4, 5, 7), "since must be"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(**{**case(3), name: wrong})
    arguments = case(3)
    arguments["prompts"] = arguments["prompts"]._replace(ids=torch.full((3, 4, 2), 6))
    with pytest.raises(ValueError, match="not there"):
        attend(**arguments)
