"""Evaluation of a run's frozen policy, with a video if asked for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np

from streamwise.runs.checkpoint import Checkpoints, restore
from streamwise.runs.config import load_config
from streamwise.runs.statistics import bootstrap_interval
from streamwise.runs.train import make_environment
from streamwise.streams import UsageError

__all__ = ["Evaluation", "evaluate"]

_FIRST_EVALUATION_SEED = 1_000_000  # far from the seeds that runs are trained with


@dataclass(frozen=True)
class Evaluation:
    """Returns of a frozen policy: their mean, and its 95% bootstrap interval (None for one episode)."""

    environment: str
    step: int
    episode_returns: list[float]
    episode_lengths: list[int]
    mean: float
    interval: tuple[float, float] | None


def evaluate(
    directory: Path,
    *,
    episodes: int = 10,
    seed: int = 0,
    explore: bool = False,
    video: Path | None = None,
    environment: str | None = None,
    on_episode: Callable[[int, float], None] = lambda episode, episode_return: None,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> Evaluation:
    """Play `episodes` episodes with the newest checkpoint of a run, learning nothing.

    explore: act as in training (sampled, or epsilon-greedy) instead of greedily. video: the first episode is
    written there as MP4. environment: another than the run's, with the same observations and actions, such as
    a longer version of it. on_frame: is told how many frames are filmed. The result in the run's own is also
    written to `evaluation.json` in its directory.
    Raises UsageError for a run that has no policy, a missing checkpoint, an environment that does not fit, or
    a video that cannot be made.
    """
    if episodes < 1:
        raise UsageError(f"--episodes is {episodes}; use 1 or more.")
    # Classic control draws with pygame, which complains where there is no display unless told to use none.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    config = load_config(directory)
    if environment is not None:
        config = replace(config, environment=environment)
    if config.agent == "stream-td":
        raise UsageError(f"{directory} predicts a series and has no policy; its scores are in the report.")
    if video is not None and video.suffix.lower() != ".mp4":
        raise UsageError(f"--video {video}: name a file that ends in .mp4.")
    checkpoint = Checkpoints.of(config).latest()
    agent: Any = restore(checkpoint)
    render_mode = "rgb_array" if video is not None else None
    # Whole games are scored, whatever counted as an episode in training.
    played = make_environment(
        config, seed=_FIRST_EVALUATION_SEED + seed, render_mode=render_mode, episodic_life=False
    )
    _check_fit(agent, played, config.environment)
    returns, lengths = [], []
    try:
        for episode in range(episodes):
            film = Film(video, played, on_frame) if video is not None and episode == 0 else None
            episode_return, length = _play(agent, played, explore, film)
            returns.append(episode_return)
            lengths.append(length)
            on_episode(episode + 1, episode_return)
    finally:
        played.close()
    interval = None
    if episodes > 1:
        low, high = bootstrap_interval(returns, np.mean)
        interval = (float(low), float(high))
    step = int(checkpoint.meta["step"])
    evaluation = Evaluation(config.environment, step, returns, lengths, float(np.mean(returns)), interval)
    if environment is None:
        (directory / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=2))
    return evaluation


def _check_fit(agent: Any, environment: Any, name: str) -> None:
    for what in ("observation_space", "action_space"):
        trained, found = getattr(agent, what), getattr(environment, what)
        if (type(trained), trained.shape) != (type(found), found.shape) or (
            isinstance(found, gymnasium.spaces.Discrete) and found != trained
        ):
            environment.close()
            raise UsageError(
                f"--env {name}: its {what.replace('_', ' ')} is {_in_short(found)}, and the run's "
                f"{_in_short(trained)}; choose an environment of the same spaces."
            )


def _in_short(space: gymnasium.Space[Any]) -> str:
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    return str(space) if discrete else f"{type(space).__name__} of shape {space.shape}"


def _play(agent: Any, environment: Any, explore: bool, film: Film | None) -> tuple[float, int]:
    observation, _ = environment.reset()
    agent.forget()
    episode_return, length, ended = 0.0, 0, False
    with film or contextlib.nullcontext():
        while not ended:
            if film is not None:
                film.add_frame()
            action = agent.act(observation, explore=explore)
            agent.remember(observation)
            observation, reward, terminated, truncated, _ = environment.step(action)
            episode_return += float(reward)
            length += 1
            ended = terminated or truncated
    return episode_return, length


class Film:
    """An MP4 of what an environment renders, one frame a step."""

    def __init__(self, path: Path, environment: Any, on_frame: Callable[[int], None]) -> None:
        try:
            import imageio.v2 as imageio
            import imageio_ffmpeg  # noqa: F401  # the writer that imageio uses for MP4
        except ImportError:
            raise UsageError('--video needs a writer: pip install "streamwise[video]".') from None
        self.path = path
        self.environment = environment
        self._on_frame, self._frames = on_frame, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        frames_per_second = environment.metadata.get("render_fps") or 30
        self._writer = imageio.get_writer(path, fps=frames_per_second, macro_block_size=2)

    def add_frame(self) -> None:
        """Render one frame."""
        try:
            frame = self.environment.render()
        except gymnasium.error.DependencyNotInstalled:
            raise UsageError(
                '--video: this environment draws with pygame: pip install "streamwise[video]".'
            ) from None
        except Exception as error:  # rendering back ends fail in many ways; all mean the same to the user
            raise UsageError(
                f"--video: the environment cannot be rendered here ({type(error).__name__}: {error}). MuJoCo "
                "draws with libegl1 or libosmesa6; `streamwise doctor` says whether it can."
            ) from None
        self._writer.append_data(np.asarray(frame))
        self._frames += 1
        self._on_frame(self._frames)

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
