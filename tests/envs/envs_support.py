"""What tests of the environments share: who plays at random and remembers every bit, and what JSON leaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from streamwise.envs import capture, make

Event = tuple[Any, ...]


class Player:
    """Resets and steps `env` with random actions; an event is a reset or a step, as all of its bits.

    An episode is given up after `most` steps. The first reset is seeded with `seed`, later ones are not.
    """

    def __init__(self, env: Any, *, seed: int = 1, most: int = 12) -> None:
        self.env, self.most = env, most
        self.seed: int | None = seed
        self.generator = np.random.default_rng(seed)
        self.steps: int | None = None  # of the episode; None: the next event is a reset

    def goes_on_in(self, env: Any) -> Player:
        """Return a player who stands where this one does, but in `env`."""
        other = Player(env, most=self.most)
        other.seed, other.steps = self.seed, self.steps
        other.generator.bit_generator.state = self.generator.bit_generator.state
        return other

    def play(self, events: int) -> list[Event]:
        return [self._reset() if self.steps is None else self._step() for _ in range(events)]

    def _reset(self) -> Event:
        observation, _ = self.env.reset(seed=self.seed)
        self.seed, self.steps = None, 0
        return ("reset", *_bits(observation))

    def _step(self) -> Event:
        assert self.steps is not None
        observation, reward, terminated, truncated, _ = self.env.step(self._action())
        self.steps = None if terminated or truncated or self.steps + 1 == self.most else self.steps + 1
        return ("step", *_bits(observation), float(reward).hex(), bool(terminated), bool(truncated))

    def _action(self) -> Any:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return int(self.generator.integers(space.n))
        return self.generator.uniform(-1.2, 1.2, space.shape).astype(np.float32)


def sent(snapshot: Any) -> Any:
    """What arrives of a snapshot that went through a strict JSON file, as a checkpoint stores it."""
    return json.loads(json.dumps(snapshot, allow_nan=False, sort_keys=True))


def check_that_another_process_goes_on(
    folder: Path, names: list[str], *, most: int = 12, before: int = 20, after: int = 50
) -> None:
    """Have a process of its own go on from snapshots taken after some events, and compare what is played."""
    expected, snapshots = {}, {}
    for name in names:
        player = Player(make(name), seed=3, most=most)
        player.play(before)
        snapshots[name] = (capture(player.env), player.generator.bit_generator.state, player.steps)
        expected[name] = hashlib.sha256(repr(player.play(after)).encode()).hexdigest()
    (folder / "snapshots.json").write_text(json.dumps(snapshots))
    code = f"""if True:
        import hashlib, json, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from envs_support import Player
        from streamwise.envs import make, restore
        for name, (snapshot, generator, steps) in json.load(open("snapshots.json")).items():
            player = Player(make(name, seed=7), most={most})
            restore(player.env, snapshot)
            player.seed, player.steps, player.generator.bit_generator.state = None, steps, generator
            print(name, hashlib.sha256(repr(player.play({after})).encode()).hexdigest())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == expected


def _bits(observation: Any) -> tuple[Any, ...]:
    array = np.asarray(observation)
    return array.dtype.str, array.shape, array.tobytes()
