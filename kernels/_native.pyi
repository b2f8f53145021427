from typing import Any

def version() -> str: ...
def instruction_set() -> str: ...
def compiler() -> str: ...
def chunk_scan(
    select: Any,
    summaries: Any,
    scales: Any,
    visible: Any,
    k: int,
    chunks: Any,
    logits: Any,
    instruction_set: str,
) -> None: ...
def chunk_scan_back(
    gradient: Any, chunks: Any, summaries: Any, scales: Any, out: Any, instruction_set: str
) -> None: ...
def chunk_attend(
    ask: Any,
    logits: Any,
    chunks: Any,
    contents: Any,
    positions: Any,
    steps: Any,
    joint: bool,
    pooled: Any,
    shares: Any,
    instruction_set: str,
) -> None: ...
def chunk_attend_back(
    gradient: Any,
    shares: Any,
    logits: Any,
    chunks: Any,
    contents: Any,
    positions: Any,
    steps: Any,
    joint: bool,
    of_ask: Any,
    of_logits: Any,
    instruction_set: str,
) -> None: ...
def event_recurrence(
    inputs: Any,
    weight: Any,
    gaps: Any,
    lengths: Any,
    cells: Any,
    targets: Any,
    decays: Any,
    outputs: Any,
    states: Any,
    kept: Any,
    instruction_set: str,
) -> None: ...
def event_recurrence_back(
    weight: Any,
    gaps: Any,
    lengths: Any,
    cells: Any,
    targets: Any,
    decays: Any,
    outputs: Any,
    kept: Any,
    of_cells: Any,
    of_targets: Any,
    of_decays: Any,
    of_outputs: Any,
    of_inputs: Any,
    instruction_set: str,
) -> None: ...
def event_states(
    cells: Any,
    targets: Any,
    decays: Any,
    outputs: Any,
    seen: Any,
    gaps: Any,
    states: Any,
    instruction_set: str,
) -> None: ...
def event_states_back(
    cells: Any,
    targets: Any,
    decays: Any,
    outputs: Any,
    seen: Any,
    gaps: Any,
    of_states: Any,
    of_cells: Any,
    of_targets: Any,
    of_decays: Any,
    of_outputs: Any,
    instruction_set: str,
) -> None: ...

class StreamStep:
    def __init__(self, spec: dict[str, Any], instruction_set: str) -> None: ...
    def act(self, observation: Any, explore: bool) -> Any: ...
    def learn_one(
        self,
        observation: Any,
        action: Any,
        reward: float,
        next_observation: Any,
        terminated: bool,
        truncated: bool,
    ) -> dict[str, float] | None: ...
    def predict(self, observation: Any) -> float | None: ...
    def remember(self, observation: Any) -> bool: ...
    def forget(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
