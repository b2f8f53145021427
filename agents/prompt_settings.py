"""Settings of the live PromptTPP (agents/prompt_tpp.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamwise.agents.event_model import EventSettings
from streamwise.streams import UsageError

__all__ = ["Floor", "PromptTPPConfig"]

Floor = Literal["both", "counts", "hawkes", "none"]


@dataclass(frozen=True)
class PromptTPPConfig(EventSettings):
    """Settings of the live PromptTPP."""

    decoder: Literal["bins", "intensity"] = "bins"
    """bins: a distribution of the next gap beside a floor; intensity: the published softplus, no floor."""
    gradients: Literal["stale", "exact"] = "stale"
    """stale: what older events left behind is a constant; exact: made anew for every event, and trained."""
    floor: Floor = "both"
    """What the network's logits are added to, and its forecasts of gaps mixed with."""
    window: int = 32
    """Newest events of a key that are attended to; even."""
    history: int = 0
    """Chunks of events before the window that are kept of each key and read (bins); 0: none."""
    history_length: int = 8
    """Events in a chunk."""
    history_reads: int = 4
    """Chunks that are opened, the best by their summaries."""
    history_features: int = 32
    """Numbers that are read."""
    history_heads: int = 4
    """Of the attention inside a chunk."""
    width: int = 32
    """Of keys, values and states; a multiple of 16."""
    time_width: int = 16
    """Of the embedding of a gap; even."""
    layers: int = 2
    """Layers of each head."""
    heads: int = 2
    """Stacks of attention, each of the full width."""
    hidden: int = 64
    """Of the decoder; a multiple of 16."""
    prompts: int = 16
    """In the pool; 0 for none."""
    selected: int = 4
    """Prompts that are attended to."""
    rows: int = 4
    """Pairs of a key and a value in each prompt."""
    retrieval: Literal["nearest", "random"] = "nearest"
    """random: for comparison."""
    usage_balance: float = 0.0
    """How strongly prompts that are found often are held back."""
    reuse_after: float = 0.0
    """Events after which a prompt that nothing found is put where the newest query is. 0: never."""
    matching: float = 0.1
    """How strongly prompts' keys are drawn to the queries that found them."""
    refresh_every: int = 2
    """Steps of the network for one of the pool; 1 for synchronous refresh."""
    train: Literal["all", "pool"] = "all"
    """pool: only the prompts learn."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 10.0
    """Largest norm of a gradient."""
    group: int = 32
    """Events that one step is made of."""
    recency: bool = True
    """Learn offsets of attention for how recent an event is, in events and in time."""
    calendar: bool = False
    """See hour and weekday, as UTC. Only for logs of many weeks: over a few days they tell the date."""
    silence_every: int = 32
    """Events after which some key pays for its silence; 0: none does."""
    drift_boost: float = 1.0
    """What the learning rate is multiplied with for 2,000 events after an alarm of drift."""
    hot_keys: int = 512
    """Keys whose projected events are kept; a multiple of 8."""
    cache_age: int = 64
    """Steps after which they are projected anew."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the network."""
    seed: int = 0
    """Of the first weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "window": (2, 4096), "width": (16, 128), "time_width": (2, 64), "layers": (1, 8), "heads": (0, 8),
            "hidden": (16, 1024), "prompts": (0, 1024), "rows": (1, 64), "group": (1, 1_000_000),
            "refresh_every": (1, 1_000_000), "silence_every": (0, 10**9), "hot_keys": (8, 10**7),
            "cache_age": (0, 10**9), "learning_rate": (0.0, 10.0), "weight_decay": (0.0, 10.0),
            "clip": (1e-9, 1e9), "matching": (0.0, 1e3), "usage_balance": (0.0, 1e3),
            "reuse_after": (0.0, 1e12), "drift_boost": (1.0, 1e3), "seed": (0, 2**62), "history": (0, 4096),
            "history_length": (1, 1024), "history_reads": (1, 4096), "history_features": (1, 1024),
            "history_heads": (1, 1024),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}; it lies between {low:,} and {high:,}.")
        for name, unit in {"window": 2, "width": 16, "time_width": 2, "hidden": 16, "hot_keys": 8}.items():
            if getattr(self, name) % unit:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a multiple of {unit}.")
        if self.history and self.decoder == "intensity":
            raise UsageError("history is read by decoder bins; use it, or history 0.")
        if self.history * self.history_length % 2:
            raise UsageError(
                f"{self.history} chunks of {self.history_length} events are an odd number; use an even one."
            )
        if self.history_features % self.history_heads:
            raise UsageError(
                f"history_features is {self.history_features}; it must be a multiple of history_heads, "
                f"which is {self.history_heads}."
            )
        if self.types > 128:
            raise UsageError(f"types is {self.types}; counts after two types need it to be 128 or less.")
        if self.prompts and not 1 <= self.selected <= self.prompts:
            raise UsageError(f"{self.selected} of {self.prompts} prompts cannot be selected.")
