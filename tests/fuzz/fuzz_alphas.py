"""Fuzzer of the alphas reader: a document is refused, or it is read, written back the same and can be allocated."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["alphalloc"]):
    from alphalloc import ModelAlphas, allocate
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


if __name__ == "__main__":
    # The alphas of two layers of noise; starting from a file spares the fuzzer the numerics.
    saved = json.loads((Path(__file__).parent / "alphas.json").read_text())
    bare = {**saved, "matrices": [{**matrix, "esd_histogram": None} for matrix in saved["matrices"]]}
    run(read, [json.dumps(document).encode() for document in (saved, bare)], mutate_json)
