"""Fuzzer of the schedule reader: a document is refused, or it is read and written back the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["alphalloc"]):
    from alphalloc.allocation import ExpertSchedule, allocate
    from alphalloc.errors import AlphallocError

sys.path.insert(0, str(Path(__file__).parent))
from harness import mutate_json, run


def read(data: bytes) -> None:
    """Read as it stands, and as edited by hand, which passes the check of the id."""
    text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    for restamp in (False, True):
        try:
            schedule = ExpertSchedule.from_json(text, restamp=restamp)
        except AlphallocError:
            continue
        again = ExpertSchedule.from_json(schedule.to_json())
        assert again == schedule
        assert again.id == schedule.id


if __name__ == "__main__":
    found = [
        allocate([2.1, 2.9, 3.4, 2.6], 20),
        allocate([2.1, 2.9, 3.4, 2.6], 12, rule="mola_triangle", rounding="reference"),
        allocate([3.0] * 8, 64, rule="linear", params={"eps": 0.5}, max_experts=9),
    ]
    run(read, [json.dumps(json.loads(one.to_json())).encode() for one in found], mutate_json)
