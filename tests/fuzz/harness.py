"""What the fuzzers share: changes that keep JSON valid, reaching past the parser, and the loop around one reader.

    OMP_NUM_THREADS=1 python tests/fuzz/fuzz_schedule.py -max_total_time=600 -rss_limit_mb=1024

Every argument is libFuzzer's. A reader may refuse with an error of this project's; anything else is a finding.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import atheris

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 1e308, -1e-320, 0.5, "", "a", "\ud800",
    "\0", "x" * 5000, "../../x", [], {}, [[]], [0] * 1000, {"a": {"b": []}},
)  # fmt: skip


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Return ``data`` with one value of its JSON changed, or libFuzzer's own change of the bytes."""
    draw = random.Random(seed)
    if draw.random() < 0.3:
        return atheris.Mutate(data, max_size)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return atheris.Mutate(data, max_size)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        value = _changed(value, draw)
    changed = json.dumps(value).encode()
    return changed if len(changed) <= max_size else atheris.Mutate(data, max_size)


def _changed(value: Any, draw: random.Random) -> Any:
    """Return ``value`` with one node replaced, dropped, doubled or moved; the way down is drawn."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        what = draw.random()
        if what < 0.08:
            return {name: one for name, one in value.items() if name != key}
        if what < 0.16:
            return {**value, draw.choice(("", "extra", key + "x", "\ud800")): value[key]}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        what = draw.random()
        if what < 0.1:
            return value[:at] + value[at + 1 :]
        if what < 0.2:
            return value[: at + 1] + value[at:]
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice(
            (value + 1, value - 1, -value, value * 2, value * 1e300 if abs(value) < 1e5 else 0, str(value))
        )
    return draw.choice(ODD)


def run(read: Callable[[bytes], None], seeds: Iterable[bytes], mutator: Callable[..., bytes] | None = None) -> None:
    """Feed ``read`` from ``seeds`` on until libFuzzer's limits; it exits the process."""
    folder = Path(tempfile.mkdtemp(prefix="alphalloc-fuzz-"))
    for at, seed in enumerate(seeds):
        (folder / f"seed-{at}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-artifact_prefix={folder}/",
        "-timeout=20",
        "-max_len=65536",
        *sys.argv[1:],
        str(folder),
    ]
    options: dict[str, Any] = {} if mutator is None else {"custom_mutator": mutator}
    atheris.Setup(arguments, read, **options)
    atheris.Fuzz()
