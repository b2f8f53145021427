"""Which networks and actions the native step takes, and that it refuses what it cannot work with, by name."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces
from native_support import (
    BOX,
    DISCRETE,
    GRID,
    VECTOR,
    assert_single_updates_agree,
    pair,
    random_samples,
)
from torch import nn

from streamwise.agents import StreamAC, StreamTD
from streamwise.agents.networks import ChannelsFirst, LayerNorm
from streamwise.agents.step_sizes import ObGD
from streamwise.kernels import native_info
from streamwise.kernels.stream_step import make_stream_step
from streamwise.streams import Transition, UsageError

pytestmark = pytest.mark.skipif(native_info() is None, reason="streamwise was built without native kernels")


def test_a_network_without_a_kernel_runs_on_torch_or_says_why_it_cannot():
    def tanh(outputs):
        return nn.Sequential(nn.Linear(17, 16), nn.Tanh(), nn.Linear(16, outputs))

    assert StreamTD(VECTOR, network=tanh).native is None
    with pytest.raises(UsageError, match="no native kernel for Tanh"):
        StreamTD(VECTOR, network=tanh, backend="native")
    assert StreamTD(VECTOR).native is not None
    assert StreamTD(VECTOR, backend="torch").native is None


def test_a_rule_without_a_kernel_runs_on_torch_or_says_why_it_cannot(monkeypatch):
    class Halved(ObGD):
        def update(self, parameters, gradient, td_error, decay):
            return super().update(parameters, gradient, td_error / 2, decay)

    monkeypatch.setattr("streamwise.agents.settings.ObGD", Halved)
    config = StreamTD.Config(step_size_rule="obgd")
    assert StreamTD(VECTOR, config=config).native is None
    with pytest.raises(UsageError, match="no native kernel for the rule Halved"):
        StreamTD(VECTOR, config=config, backend="native")


def test_a_network_of_ones_own_made_of_known_layers_runs_natively():
    def deep(outputs):
        return nn.Sequential(
            nn.Linear(17, 33), nn.LeakyReLU(0.2), nn.Linear(33, 9), LayerNorm(), nn.Linear(9, outputs)
        )  # fmt: skip

    torch.manual_seed(0)
    config = StreamAC.Config(dtype="float64")
    reference = StreamAC(VECTOR, BOX, config, network=deep, backend="torch")
    native = StreamAC(VECTOR, BOX, config, network=deep, backend="native")
    samples = random_samples(np.random.default_rng(11), VECTOR, BOX, 20)
    assert_single_updates_agree(reference, native, samples, 1e-12)


class TwiceAsMuch(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


def frozen(inputs, outputs):
    return nn.Linear(inputs, outputs).requires_grad_(False)


def orthogonal(inputs, outputs):
    return nn.utils.parametrizations.orthogonal(nn.Linear(inputs, outputs))


def spectral(inputs, outputs):
    return nn.utils.spectral_norm(nn.Linear(inputs, outputs))


def twice(inputs, outputs):
    layer = nn.Linear(inputs, outputs)
    return nn.Sequential(layer, nn.LeakyReLU(), layer)


def deep(inputs, outputs):
    return nn.Sequential(*[nn.Linear(inputs, outputs) for _ in range(32)])


class Reversed(nn.Sequential):
    def forward(self, x):
        return super().forward(-x)


@pytest.mark.parametrize("part", [TwiceAsMuch, frozen, orthogonal, spectral, twice, deep])
def test_a_layer_that_is_more_than_its_kernel_computes_leaves_the_network_to_torch(part):
    """Taken for the layer that it resembles, it would learn something else, or not be built at all."""

    def build(outputs):
        made = part(17, 17)
        return nn.Sequential(*(made if isinstance(made, nn.Sequential) else [made]), nn.Linear(17, outputs))

    assert StreamTD(VECTOR, network=build).native is None


def test_a_sequence_with_a_forward_of_its_own_leaves_the_network_to_torch():
    assert StreamTD(VECTOR, network=lambda outputs: Reversed(nn.Linear(17, outputs))).native is None


@pytest.mark.parametrize(
    "layers",
    [
        lambda outputs: [ChannelsFirst(), nn.Flatten(), nn.Linear(400, outputs)],
        lambda outputs: [ChannelsFirst(), nn.Conv2d(4, 1, 3), nn.Flatten(0), nn.Linear(64, outputs)],
    ],
    ids=["flatten-first", "flatten-everything"],
)
def test_a_picture_flattened_otherwise_leaves_the_network_to_torch(layers):
    agent = StreamTD(GRID, network=lambda outputs: nn.Sequential(*layers(outputs)))
    assert agent.native is None
    assert isinstance(agent.predict_one(np.zeros(GRID.shape, np.float32)), float)


@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_actions_of_a_dtype_that_the_engine_does_not_write_leave_the_learner_to_torch(dtype):
    space = spaces.Box(-5, 5, (2,), dtype)
    assert StreamAC(VECTOR, space).act(np.zeros(17)).dtype == dtype
    with pytest.raises(UsageError, match="actions are"):
        StreamAC(VECTOR, space, backend="native")


def test_without_the_extension_learners_run_on_torch(monkeypatch):
    monkeypatch.setattr("streamwise.kernels.stream_step.native_info", lambda: None)
    assert StreamTD(VECTOR).native is None
    with pytest.raises(UsageError, match="built without native kernels"):
        StreamTD(VECTOR, backend="native")


def test_a_back_end_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="backend is 'cuda'; choose one of: auto, native, torch"):
        StreamTD(VECTOR, backend="cuda")


@pytest.mark.parametrize("explore", [0, np.bool_(False)])
def test_explore_may_be_any_boolean(explore):
    reference, native = pair("stream-ac", VECTOR, BOX)
    found, expected = (agent.act(np.ones(17), explore=explore) for agent in (native, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("action", [np.array(1), torch.tensor(1), 1.0, "1", np.bool_(True), 1 << 80, -1, 4])
def test_what_is_no_action_is_refused_by_both_back_ends(action):
    for learner in pair("stream-q", VECTOR, DISCRETE):
        with pytest.raises(ValueError, match="step 1: the action is"):
            learner.learn_one(Transition(np.zeros(17), action, 0.0, np.zeros(17), False, False))


@pytest.fixture
def spec(monkeypatch):
    """What the native step of a small stream-TD is made from."""
    seen = {}

    def keep(given):
        seen.update(given)
        return make_stream_step(given)

    monkeypatch.setattr("streamwise.agents.native.make_stream_step", keep)
    StreamTD(VECTOR, config=StreamTD.Config(hidden_size=16))
    return seen


@pytest.mark.parametrize(
    ("place", "array", "complaint"),
    [
        ("parameters", torch.zeros(577, dtype=torch.float64), "parameters must hold float32"),
        ("parameters", torch.zeros(576), "parameters must hold 577 numbers"),
        ("trace", torch.zeros(577, 2)[:, 0], "trace is not contiguous"),
        ("trace", torch.zeros(577, 1), "trace has the wrong shape"),
        ("trace", [0.0] * 577, "trace is not an array"),
        ("second_moment", np.broadcast_to(np.float32(0), 577), "second_moment is not"),
        ("layers", [("linear", 17, 16), ("linear", 15, 1)], "layer 1: takes another number of inputs"),
        ("layers", [("convolution", 1, 17, 1, 4, 3, 1)], "layer 0: its kernel is too large"),
        ("layers", [("linear", 17)], "layer 0: too few numbers"),
        ("layers", [("gru", 17, 16)], "layer 0: unknown kind 'gru'"),
        ("layers", [()], "layer 0: too few numbers"),
        ("layers", [["linear", 17, 1]], "layer 0: is not a tuple"),
        ("layers", [("linear", "17", 1)], "layer 0: entry 1 has the wrong type"),
        ("layers", [("linear", 17, 17)] * 33, "layer 32: more than 32 layers"),
        # Their product is 17 modulo 2^64.
        (
            "layers",
            [("convolution", 64030193, 220183953, 261574033, 1, 1, 1 << 28), ("flatten",), ("linear", 1, 1)],
            "layer 0: a size is out of range",
        ),
        ("layers", [("layer_norm",), ("linear", 17, 1)], "layer 0: the first layer must be linear"),
    ],
)
def test_an_array_or_layer_that_does_not_fit_is_refused_by_name(spec, place, array, complaint):
    with pytest.raises((ValueError, TypeError)) as caught:
        make_stream_step({**spec, "value": {**spec["value"], place: array}})
    assert complaint in str(caught.value)


def test_a_read_only_array_is_refused(spec):
    mean = spec["mean"].copy()
    mean.flags.writeable = False
    with pytest.raises(TypeError, match="mean is not an array that can be written to"):
        make_stream_step({**spec, "mean": mean})


def test_a_precision_that_the_engine_does_not_have_is_refused(spec):
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        make_stream_step({**spec, "dtype": "float16"})


def test_memory_that_a_tensor_lets_go_of_stays_while_the_step_works_in_it(spec):
    memory = np.zeros(577, np.float32)
    trace, freed = torch.from_numpy(memory), weakref.ref(memory)
    step = make_stream_step({**spec, "value": {**spec["value"], "trace": trace}})
    del memory
    trace.data = torch.zeros(577)
    gc.collect()
    assert freed() is not None
    del step, trace
    gc.collect()
    assert freed() is None


def test_a_second_thread_in_the_same_step_is_refused(spec):
    step, refused = make_stream_step(spec), []

    def learn(terminated):
        return step.learn_one(np.ones(17), None, 1.0, np.ones(17), terminated, False)

    class Slow:  # a boolean whose answer takes until another thread has tried
        def __bool__(self):
            def attempt():
                for call in (lambda: learn(False), lambda: step.predict(np.ones(17)), step.state):
                    with pytest.raises(RuntimeError, match="at work in another call"):
                        call()
                    refused.append(call)

            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()
            return False

    assert learn(Slow()) is not None
    assert len(refused) == 3
    assert learn(False) is not None
