"""An online classifier: each example is predicted, then learned from, alone or with a few before it.

    p = softmax(network(x))        loss = −log p_y        w ← w − step size · ∂(mean loss of the batch)/∂w

Plain stochastic gradient descent on a small network, around which methods of continual learning are put
(memory/continual): by itself it forgets what it is not shown any more. A batch that is not full is part of
the state, so that nothing is lost or learned twice when a run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from streamwise.agents.learner import Metrics, State
from streamwise.memory.continual.wrapped import Objective
from streamwise.streams import Example, NonFiniteSampleError, UsageError

__all__ = ["Classifier", "ClassifierConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier learns."""

    hidden_size: int = 64
    """Units in each hidden layer."""
    hidden_layers: int = 2
    """Hidden layers; 0: a linear classifier."""
    step_size: float = 0.1
    """Of gradient descent."""
    batch_size: int = 1
    """Examples that an update is made of; each is predicted when it comes."""

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.hidden_layers < 0 or self.batch_size < 1 or not self.step_size > 0.0:
            raise UsageError(
                f"hidden_size is {self.hidden_size}, hidden_layers {self.hidden_layers}, batch_size "
                f"{self.batch_size}, step_size {self.step_size}; use positive numbers."
            )


class Classifier:
    """A network that learns to tell classes apart.

    features, classes: sizes of what comes in and goes out. seed: of the first weights. A parameter's step
    size is that of the configuration times its entry of `step_scales`, by the beginning of its name.

    >>> import numpy as np
    >>> classifier = Classifier(2, 2, ClassifierConfig(hidden_layers=0), seed=0)
    >>> for number in range(200):
    ...     side = number % 2
    ...     metrics = classifier.learn_one(Example(np.float32([side, 1.0]), side))
    >>> metrics["correct"], round(metrics["log_loss"], 2)
    (1.0, 0.14)
    """

    def __init__(
        self, features: int, classes: int, config: ClassifierConfig | None = None, *, seed: int = 0
    ) -> None:
        self.config = config or ClassifierConfig()
        self.features, self.classes = features, classes
        self.network: nn.Module = mlp(features, classes, self.config, seed)
        self.objective: Objective = self.loss
        self.step_scales: dict[str, float] = {}
        self._inputs: list[Tensor] = []  # of the batch that is not full
        self._targets: list[int] = []
        self._updates = 0

    @property
    def updates(self) -> int:
        """How many updates there have been."""
        return self._updates

    def scores(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of the classes, up to a constant, [n, classes], changing nothing."""
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            found: Tensor = self.network(inputs)
        self.network.train(was_training)
        return found

    def learn_one(self, example: Example, /) -> Metrics:
        """Predict one example, then learn from it once a batch is full.

        Returns whether it was predicted ("correct") and minus the log of what its class was given
        ("log_loss", in nats). Raises NonFiniteSampleError for NaN and infinities, ValueError for a class that
        there is not.
        """
        inputs = torch.from_numpy(example.features).to(torch.float32)
        if not torch.isfinite(inputs).all():
            raise NonFiniteSampleError(
                f"an example of class {example.label} has features that are not finite."
            )
        if not 0 <= example.label < self.classes:
            raise ValueError(f"the class is {example.label}, and there are {self.classes}, from 0.")
        logits = self.scores(inputs[None])[0]
        metrics = {
            "correct": float(logits.argmax() == example.label),
            "log_loss": -float(logits.log_softmax(0)[example.label]),
        }
        self._inputs.append(inputs)
        self._targets.append(example.label)
        if len(self._inputs) == self.config.batch_size:
            batch = torch.stack(self._inputs), torch.tensor(self._targets)
            self._inputs, self._targets = [], []
            self.update(*batch)
        return metrics

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Make one step down the gradient of the objective."""
        named = [(name, weight) for name, weight in self.network.named_parameters() if weight.requires_grad]
        loss = self.objective(inputs, targets)
        gradients = torch.autograd.grad(loss, [weight for _, weight in named], allow_unused=True)
        with torch.no_grad():
            for (name, weight), gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    weight.sub_(self.config.step_size * self._scale(name) * gradient)
        self._updates += 1

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch: the objective, before anything is added to it."""
        return nn.functional.cross_entropy(self.network(inputs), targets)

    def consolidate(self) -> None:
        """Do nothing: by itself it does not look back."""

    def _scale(self, name: str) -> float:
        return next((scale for start, scale in self.step_scales.items() if name.startswith(start)), 1.0)

    def state_dict(self) -> State:
        """Return weights, buffers, the batch that is not full, and how many updates there were."""
        state = {f"network.{name}": x.detach().clone() for name, x in self.network.state_dict().items()}
        inputs = torch.stack(self._inputs) if self._inputs else torch.zeros(0, self.features)
        targets = torch.tensor(self._targets, dtype=torch.int64)
        return {
            **state,
            "batch.inputs": inputs,
            "batch.targets": targets,
            "updates": torch.tensor(self._updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        prefix = "network."
        weights = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
        self.network.load_state_dict(weights)
        self._inputs = list(state["batch.inputs"].clone())
        self._targets = state["batch.targets"].tolist()
        self._updates = int(state["updates"])


def mlp(features: int, classes: int, config: ClassifierConfig, seed: int) -> nn.Sequential:
    """Return linear layers with rectifiers between them, drawn from N(0, 2/inputs), with biases of zero.

    Source: He, Zhang, Ren and Sun (2015), arXiv:1502.01852.
    """
    generator = torch.Generator().manual_seed(seed)
    widths = [features] + [config.hidden_size] * config.hidden_layers + [classes]
    layers: list[nn.Module] = []
    for width, outputs in pairwise(widths):
        with torch.random.fork_rng(devices=[]):  # torch draws weights, too, which are not used
            linear = nn.Linear(width, outputs)
        nn.init.normal_(linear.weight, std=(2.0 / width) ** 0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
