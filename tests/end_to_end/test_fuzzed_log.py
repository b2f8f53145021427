"""A log full of rubbish: nothing stops the run, what is refused is kept with its reason, the rest learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from streamwise.agents import CountsConfig
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.ingest import ingest
from streamwise.runs.ingest_config import IngestConfig

SIZES = [pytest.param(20_000, id="short"), pytest.param(1_000_000, id="long", marks=pytest.mark.slow)]
WORDS = ["view", "buy", "café", "日本", "a b", 'quo"te', "\\", "x" * 200, "\u0000", "<script>"]


class Fuzz:
    """Makes records; each with the reason for which it is to be refused, or None."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.time = 1.6e9
        self.kinds = [kind for kind in dir(self) if kind.startswith("make_")]

    def record(self):
        if self.draw.random() < 0.5:
            return json.dumps(self.event(), ensure_ascii=self.draw.random() < 0.5).encode(), None
        return getattr(self, self.draw.choice(self.kinds))()

    def event(self, **changes):
        self.time += self.draw.expovariate(1.0)
        event = {
            "time": self.time,
            "type": self.draw.choice(WORDS),
            "key": f"k{self.draw.randrange(500)}",
            "v": 1,
        }
        event |= {"extra": self.draw.choice([None, [1, {"a": []}], "text", 1e308])}
        return event | changes

    def changed(self, reason, **changes):
        return json.dumps(self.event(**changes)).encode(), reason

    def make_random_bytes(self):
        junk = self.draw.randbytes(self.draw.randrange(1, 300)).replace(b"\n", b"").replace(b"\r", b"")
        return b"\xff" + junk, "malformed"

    def make_cut_json(self):
        whole = json.dumps(self.event()).encode()
        return whole[: self.draw.randrange(1, len(whole))], "malformed"

    def make_flipped_bytes(self):
        whole = bytearray(json.dumps(self.event()).encode())
        whole[self.draw.choice([0, len(whole) - 1])] = self.draw.choice(b"\x00\x01}{x\x80")
        return bytes(whole) if whole[0] != ord("{") or whole[-1] != ord("}") else b"}{", "malformed"

    def make_broken_utf8(self):
        return json.dumps(self.event(type="vi@ew")).encode().replace(b"@", b"\xc3\x28"), "malformed"

    def make_something_else_in_json(self):
        return self.draw.choice([b"7", b"null", b'"text"', b"[1, 2]", b"true", b"[]", b"1e999"]), "malformed"

    def make_deep_nesting(self):
        depth = self.draw.choice([200, 5_000])
        return b'{"time": 1, "deep": ' + b"[" * depth + b"]" * depth + b"}", "malformed"

    def make_huge_time(self):
        huge = self.draw.choice(["1e400", "9" * 400, "-1e400", "1e30"])
        return json.dumps(self.event(time="@")).replace('"@"', huge).encode(), "bad time"

    def make_impossible_time(self):
        bad = [-1.0, -1e12, "NaN", "Infinity", "yesterday", "", True, [1], {"s": 1}, "2024-13-01T00:00:00"]
        choice = self.draw.choice(bad)
        return self.changed("missing field" if choice == "" else "bad time", time=choice)

    def make_missing_field(self):
        event, name = self.event(), self.draw.choice(["time", "type", "key"])
        if self.draw.random() < 0.5:
            del event[name]
        else:
            event[name] = None
        return json.dumps(event).encode(), "missing field"

    def make_bad_value(self):
        name = self.draw.choice(["type", "key"])
        return self.changed("bad value", **{name: self.draw.choice([[1], {}, True, 1.5, "\ud800"])})

    def make_oversize(self):
        if self.draw.random() < 0.9:  # such records are long, so there are few of them
            return self.changed("oversize", key="k" * 2_000)
        return self.changed("oversize", extra="x" * self.draw.choice([70_000, 300_000]))

    def make_unknown_version(self):
        return self.changed("unknown version", v=self.draw.choice([2, "one", 1.5, "01"]))

    def make_late(self):
        return self.changed("late", time=self.time - 10.0 - 1e6 * self.draw.random())

    def make_future(self):
        return self.changed("in the future", time=9e9)


@pytest.mark.parametrize("count", SIZES)
def test_a_log_full_of_rubbish(tmp_path, count):
    fuzz, reasons, path = Fuzz(1), {}, tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for line in range(1, count + 1):
            record, reason = fuzz.record()
            file.write(record + b"\n")
            if reason is not None:
                reasons[line] = reason
    resident = []
    source = f"file:{path}?unit=s&version=v&versions=1"
    config = IngestConfig((source,), CountsConfig(types=16), out=tmp_path / "run", checkpoint_seconds=1.0)
    result = ingest(config, display=watching(resident))

    found = {}
    for line in (tmp_path / "run" / "dead_letters.jsonl").read_text().splitlines():
        letter = json.loads(line)
        assert letter["position"] not in found
        found[letter["position"]] = letter["reason"]
    assert {
        line: (reason, found.get(line)) for line, reason in reasons.items() if found.get(line) != reason
    } == {}
    assert found.keys() == reasons.keys()
    assert result.events == count - len(reasons)
    assert result.scores["log_likelihood"] == result.scores["log_likelihood"]  # is no NaN
    assert set(reasons.values()) == set(result.dead_letters)
    assert Checkpoints.of(tmp_path / "run").latest().meta["position"]["records"] == count
    # What pyarrow and the allocator take at the first writes comes early.
    assert resident[-1] - resident[len(resident) // 3] < 40.0


def watching(resident):
    class Watching:
        def __init__(self, run, note=""):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * 4096 / 2**20)

    return Watching
