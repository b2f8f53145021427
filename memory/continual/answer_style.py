"""Answer-style diversification: a share of samples is learned through another form of answer.

    of each sample a form is drawn: 1 − share as always, share/3 each of
        is it class k?     −log σ(o_k) or −log σ(−o_k)     k: the right one or, as often, another
        which of four?     −log softmax_C(o)_y             C: the right one and three others
        of which group?    −log softmax(o)_g(y)            g: a division of the classes, drawn once
    loss = 1/n (Σ of samples as always, the learner's own + Σ of others, that of their form)

A network that is asked in one form only can lose how to answer, with what it knows still there. Other forms
share all of the network but its last layer; each has a head o of its own, which no prediction looks at.

In the paper a language model is asked in five styles; these forms are what a classifier has of them, and are
ours. The share, and that forms are equally frequent, are the paper's. Nothing is told of boundaries.

Source: Chen et al. (2025), "SEFE: superficial and essential forgetting eliminator for multimodal continual
instruction tuning", arXiv:2505.02486. Its other half is memory/continual/reg_lora.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["AnswerStyles", "Forms", "choice_loss", "yes_or_no_loss"]

AS_ALWAYS, YES_OR_NO, CHOICE, GROUP = range(4)


def yes_or_no_loss(outputs: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
    """Return what each answer costs, [n], to whether it is the class that is asked for.

    outputs: [n, classes], of which only that class's counts. asked, targets: classes [n].
    """
    odds = outputs.gather(1, asked[:, None])[:, 0]
    right = (asked == targets).to(odds.dtype)
    return nn.functional.binary_cross_entropy_with_logits(odds, right, reduction="none")


def choice_loss(outputs: Tensor, offered: Tensor, targets: Tensor) -> Tensor:
    """Return what each choice costs, [n], among the classes that are offered, [n, choices].

    outputs: [n, classes]. targets: classes [n], each among those offered.
    """
    logs = outputs.gather(1, offered).log_softmax(1)
    return -logs[offered == targets[:, None]]


class Forms(nn.Module):
    """A network with a head for each other form of answer beside its last layer, which alone predicts."""

    def __init__(self, network: nn.Sequential, classes: int, groups: int, generator: torch.Generator) -> None:
        super().__init__()
        *body, last = network.children()
        self.body, self.last = nn.Sequential(*body), last
        width = int(last.in_features)  # type: ignore[arg-type]  # a Linear's, an int
        self.yes_or_no = _head(width, classes, generator)
        self.choice = _head(width, classes, generator)
        self.group = _head(width, groups, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the network always did, [n, classes]."""
        outputs: Tensor = self.last(self.body(inputs))
        return outputs


class AnswerStyles(Wrapped):
    """Learns a share of the samples through other forms of answer.

    classes: of the learner. share: of samples. choices: classes that are offered in a choice. groups: that
    classes are divided into, evenly. Of both, as many as there are classes if that is fewer.
    """

    name = "styles"

    def __init__(
        self,
        learner: Trainable,
        classes: int,
        *,
        share: float = 0.2,
        choices: int = 4,
        groups: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        if not 0.0 <= share <= 1.0 or min(choices, groups) < 2:
            raise ValueError(
                f"share is {share}, choices {choices}, groups {groups}; use 0 to 1, and 2 or more."
            )
        choices, groups = min(choices, classes), min(groups, classes)
        network = self.network
        if not isinstance(network, nn.Sequential) or not isinstance(list(network.children())[-1], nn.Linear):
            raise ValueError(
                "the network is no sequence that ends with a linear layer, beside which others are put."
            )
        self.classes, self.share, self.choices, self.seed = classes, share, choices, seed
        generator = torch.Generator().manual_seed(seed)
        self.group_of = torch.randperm(classes, generator=generator) % groups  # g, [classes]
        self.forms = Forms(network, classes, groups, generator)
        self.network = self.forms
        self.plain = learner.objective
        self.objective = self._in_forms

    def _in_forms(self, inputs: Tensor, targets: Tensor) -> Tensor:
        generator = self._generator()
        forms = self.drawn_forms(len(inputs), generator)
        others = forms != AS_ALWAYS
        if not others.any():
            return self.plain(inputs, targets)
        loss = self.losses(inputs[others], targets[others], forms[others], generator).sum()
        if not others.all():
            always = self.plain(inputs[~others], targets[~others])  # a mean
            loss = loss + (len(inputs) - len(inputs[others])) * always
        return loss / len(inputs)

    def _generator(self) -> torch.Generator:
        return generator_of(self.seed, self.updates)

    def drawn_forms(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the forms of so many samples: AS_ALWAYS, YES_OR_NO, CHOICE or GROUP, [count]."""
        other = torch.rand(count, generator=generator) < self.share
        return torch.randint(YES_OR_NO, GROUP + 1, (count,), generator=generator) * other

    def asked(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return classes to ask about, [n]: the right one or, as often, another."""
        shift = torch.randint(1, self.classes, targets.shape, generator=generator)
        wrong = torch.rand(targets.shape, generator=generator) < 0.5
        return (targets + shift * wrong) % self.classes

    def offered(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return classes to choose from, [n, choices]: the right one, and others, each once."""
        rank = torch.rand(len(targets), self.classes, generator=generator)
        rank.scatter_(1, targets[:, None], -1.0)
        return rank.argsort(1)[:, : self.choices]

    def losses(self, inputs: Tensor, targets: Tensor, forms: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of each sample in its form, which is another one than always, [n]."""
        features = self.forms.body(inputs)
        yes_or_no = yes_or_no_loss(self.forms.yes_or_no(features), self.asked(targets, generator), targets)
        choice = choice_loss(self.forms.choice(features), self.offered(targets, generator), targets)
        group = nn.functional.cross_entropy(
            self.forms.group(features), self.group_of[targets], reduction="none"
        )
        of_forms = torch.stack([yes_or_no, choice, group], dim=1)  # in the order of their numbers
        return of_forms.gather(1, forms[:, None] - YES_OR_NO)[:, 0]


def _head(width: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    head: nn.Linear = nn.utils.skip_init(nn.Linear, width, outputs)  # type: ignore[no-untyped-call]  # torch says no types
    nn.init.normal_(head.weight, std=width**-0.5, generator=generator)
    nn.init.zeros_(head.bias)
    return head
