"""Probes of memory: something is shown, time passes, and one question at the end asks for it.

Each tests one thing that a memory may lack, takes microseconds a step, and is solved by whoever remembers:
the best return is 1, and the chance of somebody who remembers nothing is known. All of them are scripts: what
is shown does not depend on the actions, and only the action at the last frame, the question, counts. So the
length of an episode is known: at most `step_limit` steps, the last of which terminates it.

| probe | tests | chance |
| --- | --- | --- |
| DelayedRecall | keeping one thing while others come | 1 / symbols |
| PairRecall | finding by content | 1 / symbols |
| OrderRecall | finding by position | 1 / symbols |
| EventRecall | keeping a sequence as one event | 1 / actors |
| TMaze | keeping one bit, for long | 0, the mean of +1 and -1 |
| ShellGame | knowing that a thing is where it is no longer seen | 1 / boxes |
| Naming | binding a name to a thing, after one telling | 1 / objects |
| Told | knowing what somebody else was told | 1 / symbols |

Observations are flat float32 arrays of zeros and ones. info is for oracles and not for agents: frame,
question_frame, answer (the action that pays) and correct.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.envs.ballet import DANCES, DIRECTIONS
from streamwise.envs.checks import action_index, one_of, whole_number, whole_numbers
from streamwise.streams import UsageError

__all__ = [
    "DelayedRecall",
    "EventRecall",
    "Naming",
    "OrderRecall",
    "PairRecall",
    "Probe",
    "ShellGame",
    "TMaze",
    "Told",
]

_MOVES = tuple(tuple(int(move) for move in moves) for moves in DANCES.values())

Row = NDArray[np.float32]
Info = dict[str, Any]


class Probe(gymnasium.Env[Row, Any], ABC):
    """A script with one question at its end; a subclass says what is drawn and what is shown.

    features: the length of an observation. actions: how many answers there are. longest: the frame of the
    question, or, if that differs by episode, the last that it may have. wrong: the reward of a wrong answer.
    """

    def __init__(self, features: int, actions: int, longest: int, *, wrong: float = 0.0) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = spaces.Discrete(actions)
        self.step_limit = longest + 1
        self._actions, self._wrong = actions, wrong
        self._frame, self._question_frame, self._answer = 0, longest, 0
        self._over = True

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> int:
        """Draw what an episode shows; return the answer to its question."""

    @abstractmethod
    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Write into the zeros of `row` what frame 0, 1, ..., question_frame shows."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Row, Info]:
        """Start an episode; returns observation and info."""
        super().reset(seed=seed)
        self._answer = self.draw(self.np_random)
        self._frame, self._over = 0, False
        return self._observation(), self._info(False)

    def step(self, action: int) -> tuple[Row, float, bool, bool, Info]:
        """Go on to the next frame; at the question, answer it. Raises UsageError for what is no action.

        After the answer nothing is shown any more: the last observation is all zeros.
        """
        index = action_index(action, self._actions, over=self._over)
        self._over = self._frame == self._question_frame
        correct = self._over and index == self._answer
        reward = float(correct) if correct or not self._over else self._wrong
        self._frame += 1
        return self._observation(), reward, self._over, False, self._info(correct)

    def _observation(self) -> Row:
        row = np.zeros(self.observation_space.shape or (), np.float32)
        if not self._over:
            self.show(self._frame, row, self.np_random)
        return row

    def _info(self, correct: bool) -> Info:
        return {
            "frame": self._frame,
            "question_frame": self._question_frame,
            "answer": self._answer,
            "correct": correct,
        }


class DelayedRecall(Probe):
    """A symbol is shown; after `delay` random ones, the first is asked for.

    symbols: 2 or more. delay: frames between the symbol and the question, 0 or more.
    Observation [symbols + 2]: a symbol, one-hot; whether it is the one to keep; whether this is the question.

    >>> env = DelayedRecall(symbols=4, delay=10)
    >>> observation, info = env.reset(seed=0)
    >>> for _ in range(11):
    ...     observation, *_ = env.step(0)
    >>> observation.tolist(), env.step(info["answer"])[1]
    ([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 1.0)
    """

    def __init__(self, *, symbols: int = 8, delay: int = 10) -> None:
        self._symbols = whole_number("symbols", symbols, 2)
        delay = whole_number("delay", delay, 0)
        super().__init__(self._symbols + 2, self._symbols, 1 + delay)

    def draw(self, generator: np.random.Generator) -> int:
        """Draw the symbol."""
        return int(generator.integers(self._symbols))

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show the symbol, noise, or the question."""
        if frame == self._question_frame:
            row[-1] = 1.0
        elif frame == 0:
            row[self._answer] = row[-2] = 1.0
        else:
            row[generator.integers(self._symbols)] = 1.0


class PairRecall(Probe):
    """Pairs of a key and a value are shown; after `delay` random ones, the value of one key is asked for.

    pairs: 1 or more, each with a key of its own, in random order. symbols: different values, 2 or more.
    delay: 0 or more frames of other pairs, which are marked as not to be kept.
    Observation [pairs + symbols + 2]: a key and a value, one-hot each; whether the pair is one to keep;
    whether this is the question, in which the key stands alone.
    """

    def __init__(self, *, pairs: int = 8, symbols: int = 8, delay: int = 10) -> None:
        self._pairs = whole_number("pairs", pairs, 1)
        self._symbols = whole_number("symbols", symbols, 2)
        self._asked = 0
        self._keys, self._values = np.zeros((2, self._pairs), np.int64)
        delay = whole_number("delay", delay, 0)
        super().__init__(self._pairs + self._symbols + 2, self._symbols, self._pairs + delay)

    def draw(self, generator: np.random.Generator) -> int:
        """Draw the pairs, and the one that is asked for."""
        self._keys = generator.permutation(self._pairs)
        self._values = generator.integers(self._symbols, size=self._pairs)
        self._asked = int(generator.integers(self._pairs))
        return int(self._values[self._asked])

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show a pair, noise, or the question."""
        if frame == self._question_frame:
            row[self._keys[self._asked]] = row[-1] = 1.0
        elif frame < self._pairs:
            row[[self._keys[frame], self._pairs + self._values[frame], -2]] = 1.0
        else:
            row[generator.integers(self._pairs)] = 1.0
            row[self._pairs + generator.integers(self._symbols)] = 1.0


class OrderRecall(Probe):
    """Symbols are shown one after another; after `delay` random ones, the p-th is asked for.

    length: symbols to keep, 1 or more, drawn independently. symbols: different ones, 2 or more. delay: 0 or
    more. Observation [symbols + length + 2]: a symbol, one-hot; the position asked for, one-hot; whether the
    symbol is one to keep; whether this is the question.
    """

    def __init__(self, *, length: int = 8, symbols: int = 8, delay: int = 10) -> None:
        self._length = whole_number("length", length, 1)
        self._symbols = whole_number("symbols", symbols, 2)
        self._asked, self._shown = 0, np.zeros(self._length, np.int64)
        delay = whole_number("delay", delay, 0)
        super().__init__(self._symbols + self._length + 2, self._symbols, self._length + delay)

    def draw(self, generator: np.random.Generator) -> int:
        """Draw the symbols, and the position that is asked for."""
        self._shown = generator.integers(self._symbols, size=self._length)
        self._asked = int(generator.integers(self._length))
        return int(self._shown[self._asked])

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show a symbol, noise, or the question."""
        if frame == self._question_frame:
            row[self._symbols + self._asked] = row[-1] = 1.0
        elif frame < self._length:
            row[self._shown[frame]] = row[-2] = 1.0
        else:
            row[generator.integers(self._symbols)] = 1.0


class EventRecall(Probe):
    """The ballet without its stage: actors move in turn, and the one who made one sequence is asked for.

    actors: 1 to 13, who take turns in random order, each with a dance of its own from `ballet.DANCES`, a move
    a frame. delay: frames of nothing after each dance, 1 or more as in the ballet. turns: how many of the
    actors dance, any of them; a number, or several of which each episode draws one; 0, as at first: all.
    Observation [8 + actors + 13]: a move and its actor, one-hot each; the dance asked for, one-hot, at the
    question alone.
    """

    def __init__(self, *, actors: int = 4, delay: int = 16, turns: int | Sequence[int] = 0) -> None:
        self._actors = whole_number("actors", actors, 1, len(DANCES))
        self._turn = len(_MOVES[0]) + whole_number("delay", delay, 1) - 1
        self._turns = [number or self._actors for number in whole_numbers("turns", turns, 0, self._actors)]
        self._order, self._dances = np.zeros((2, self._actors), np.int64)
        self._asked = 0
        super().__init__(
            len(DIRECTIONS) + self._actors + len(DANCES), self._actors, max(self._turns) * self._turn
        )

    def draw(self, generator: np.random.Generator) -> int:
        """Draw who is on when, with which dance, and the turn that is asked for."""
        turns = self._turns[0 if len(self._turns) == 1 else generator.integers(len(self._turns))]
        self._question_frame = turns * self._turn
        self._order = generator.permutation(self._actors)
        self._dances = generator.permutation(len(DANCES))[: self._actors]
        self._asked = int(generator.integers(turns))
        return int(self._order[self._asked])

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show a move, nothing, or the question."""
        if frame == self._question_frame:
            row[len(DIRECTIONS) + self._actors + self._dances[self._asked]] = 1.0
            return
        turn, move = divmod(frame, self._turn)
        moves = _MOVES[self._dances[turn]]
        if move < len(moves):
            row[[moves[move], len(DIRECTIONS) + self._order[turn]]] = 1.0


class TMaze(Probe):
    """A cue says left or right; after a corridor, at the junction, one has to turn: +1 right, -1 wrong.

    Passive: the agent is carried along, and only its turn counts. corridor: frames between cue and junction,
    0 or more. Observation [4]: cue for left, cue for right, in the corridor, at the junction. Action: 0 left,
    1 right. (As in the memory-length experiment of Osband et al. 2020, bsuite, arXiv:1908.03568.)
    """

    def __init__(self, *, corridor: int = 10) -> None:
        super().__init__(4, 2, 1 + whole_number("corridor", corridor, 0), wrong=-1.0)

    def draw(self, generator: np.random.Generator) -> int:
        """Draw left or right."""
        return int(generator.integers(2))

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show the cue, the corridor, or the junction."""
        if frame == self._question_frame:
            row[3] = 1.0
        else:
            row[self._answer if frame == 0 else 2] = 1.0


class ShellGame(Probe):
    """An object is put under one of the boxes; they are closed, time passes, and one of them is opened.

    boxes: 2 or more. delay: frames with the boxes closed, 0 or more.
    Observation [boxes + 2]: where the object is, one-hot, while it is seen; boxes closed; choose now.
    """

    def __init__(self, *, boxes: int = 4, delay: int = 10) -> None:
        self._boxes = whole_number("boxes", boxes, 2)
        super().__init__(self._boxes + 2, self._boxes, 1 + whole_number("delay", delay, 0))

    def draw(self, generator: np.random.Generator) -> int:
        """Draw the box."""
        return int(generator.integers(self._boxes))

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show the object, closed boxes, or closed boxes of which one may be opened."""
        row[self._answer if frame == 0 else -2] = 1.0
        if frame == self._question_frame:
            row[-1] = 1.0


class Naming(Probe):
    """Things are named once; then, maybe after others were, one is to be touched by its name.

    objects: things told in each phase, 2 or more. distractors: phases that tell of other things, between the
    first and the question; a number, or several of which each episode draws one. vocabulary: different things
    and different names there are, each in use once an episode, so at least objects (1 + distractors).
    Which name belongs to which thing is drawn anew in every episode.

    Observation [vocabulary (1 + objects) + 1]: a name, one-hot; what lies in each of `objects` places,
    one-hot each; whether this is the question. While they are told, each thing lies in some place by itself;
    at the question the first things lie there all, in a random order. Action: a place.
    info: distractors, too.
    """

    def __init__(
        self, *, objects: int = 3, distractors: int | Sequence[int] = 0, vocabulary: int = 64
    ) -> None:
        self._objects = whole_number("objects", objects, 2)
        self._vocabulary = whole_number("vocabulary", vocabulary, 1)
        self._phases = [1 + number for number in whole_numbers("distractors", distractors, 0)]
        most = self._objects * max(self._phases)
        if most > self._vocabulary:
            raise UsageError(
                f"vocabulary is {self._vocabulary}; {most} things are named: give {most} or more."
            )
        self._things, self._names, self._told_in = np.zeros((3, most), np.int64)
        self._asked, self._places = 0, np.zeros(self._objects, np.int64)
        super().__init__(self._vocabulary * (1 + self._objects) + 1, self._objects, most)

    def draw(self, generator: np.random.Generator) -> int:
        """Draw the phases, who is called what, where each is told of, and the question."""
        told = self._objects * self._phases[generator.integers(len(self._phases))]
        self._question_frame = told
        most = len(self._things)
        self._things = generator.permutation(self._vocabulary)[:most]
        self._names = generator.permutation(self._vocabulary)[:most]
        self._told_in = generator.integers(self._objects, size=most)
        self._places = generator.permutation(self._objects)  # of the first things, at the question
        self._asked = int(generator.integers(self._objects))
        return int(self._places[self._asked])

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show a thing with its name, or the question."""
        places = row[self._vocabulary : -1].reshape(self._objects, self._vocabulary)
        if frame == self._question_frame:
            row[self._names[self._asked]] = row[-1] = 1.0
            places[self._places, self._things[: self._objects]] = 1.0
        else:
            row[self._names[frame]] = 1.0
            places[self._told_in[frame], self._things[frame]] = 1.0

    def _info(self, correct: bool) -> Info:
        return {**super()._info(correct), "distractors": self._question_frame // self._objects - 1}


class Told(Probe):
    """Facts that one is told and another is asked for: who is asked knows them only from who was told.

    facts: how many there are, each a name of `bits` zeros and ones, and a symbol. world: what they are; two
    environments of one world have the same. role: "tell" shows one fact after another, name and symbol, and
    pays for the symbol that it shows; "ask" shows the name of any, and pays for its symbol, which is seen
    nowhere. An episode is one frame. By rewards alone, who is asked has to learn each fact by itself.

    Observation [bits + symbols + 2]: the name; the symbol, one-hot; whether it is told; whether it is asked.

    >>> teller, asked = Told(facts=3, role="tell", world=5), Told(facts=3, role="ask", world=5)
    >>> told = [teller.reset()[0] for _ in range(3)]
    >>> question, info = asked.reset(seed=0)
    >>> [int(fact[16:20].argmax()) for fact in told if (fact[:16] == question[:16]).all()] == [info["answer"]]
    True
    """

    def __init__(
        self, *, facts: int = 1000, symbols: int = 4, bits: int = 16, world: int = 0, role: str = "ask"
    ) -> None:
        facts = whole_number("facts", facts, 1)
        self._symbols, self._bits = whole_number("symbols", symbols, 2), whole_number("bits", bits, 1)
        self._tells = one_of("role", role, ("tell", "ask")) == "tell"
        generator = np.random.default_rng(whole_number("world", world, 0))
        self._names = generator.integers(2, size=(facts, self._bits))
        self._values = generator.integers(self._symbols, size=facts)
        self._told, self._fact = 0, 0
        super().__init__(self._bits + self._symbols + 2, self._symbols, 0)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Row, Info]:
        """Start an episode; with a seed, telling begins anew."""
        if seed is not None:
            self._told = 0
        return super().reset(seed=seed, options=options)

    def draw(self, generator: np.random.Generator) -> int:
        """Take the next fact, or draw the one that is asked for."""
        if self._tells:
            self._fact, self._told = self._told, (self._told + 1) % len(self._values)
        else:
            self._fact = int(generator.integers(len(self._values)))
        return int(self._values[self._fact])

    def show(self, frame: int, row: Row, generator: np.random.Generator) -> None:
        """Show the fact, or its name."""
        row[: self._bits] = self._names[self._fact]
        if self._tells:
            row[self._bits + self._answer] = row[-2] = 1.0
        else:
            row[-1] = 1.0
