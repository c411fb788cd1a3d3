"""Fuzzer of the alphas reader: a document is refused, or it is read, written back the same and can be allocated."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["alphalloc"]):
    import numpy as np

    from alphalloc import ModelAlphas, allocate, analyze
    from alphalloc.errors import AlphallocError

sys.path.insert(0, str(Path(__file__).parent))
from harness import mutate_json, run


def read(data: bytes) -> None:
    """Read; of what is read, the same text must come back, and a schedule or a refusal."""
    text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    try:
        alphas = ModelAlphas.from_json(text)
        written = alphas.to_json()
    except AlphallocError:
        return
    assert ModelAlphas.from_json(written).to_json() == written
    with contextlib.suppress(AlphallocError):
        allocate(alphas, 4 * max(1, len(alphas.layers)))


def documents() -> list[bytes]:
    """Return the alphas of two small models made here."""
    draw = np.random.default_rng(0)
    found = []
    for width in (24, 40):
        state = {
            f"model.layers.{layer}.mlp.{role}_proj.weight": draw.standard_normal((width, 32)).astype(np.float32)
            for layer in range(3)
            for role in ("up", "down")
        }
        found.append(json.dumps(json.loads(analyze(state, cache=False).to_json())).encode())
    return found


if __name__ == "__main__":
    run(read, documents(), mutate_json)
