"""What is missing by design and what is missing against expectation; strict refuses the latter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alphalloc.analysis import analyze
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import StrictError

State = Callable[..., dict[str, Any]]
BLOCK = "model.layers.0"
ONES = np.ones((2, 2, 3), dtype=np.float32)

# tensor -> (values, whether it is missing by design)
EXTRA: dict[str, tuple[Any, bool]] = {
    f"{BLOCK}.mlp.mystery.weight": (ONES, False),
    f"{BLOCK}.conv.weight": (ONES, True),
    f"{BLOCK}.nothing.weight": (np.ones((0, 4), dtype=np.float32), False),
    f"{BLOCK}.wide.weight": (np.broadcast_to(np.float32(1.0), (1, 262_145)), False),
    f"{BLOCK}.mask": (np.ones((4, 4), dtype=bool), True),
    "patch.weight": (ONES, True),
}


def test_only_the_unexpected_is_missing_without_design(llama_state: State) -> None:
    state = llama_state() | {name: values for name, (values, _) in EXTRA.items()}
    skipped = {s.name: s.by_design for s in open_checkpoint(state, exclude=["q_proj"]).skipped}
    assert {name: skipped.pop(name) for name in EXTRA} == {name: expected for name, (_, expected) in EXTRA.items()}
    assert set(skipped.values()) == {True}
    assert f"{BLOCK}.self_attn.q_proj.weight" in skipped


def test_strict_refuses_what_is_missing_without_design(llama_state: State) -> None:
    state = llama_state() | {name: values for name, (values, _) in EXTRA.items()}
    with pytest.raises(StrictError, match=r"3 tensors cannot be analysed.*mystery\.weight: 3-D"):
        analyze(state, strict=True, estimator="ks", cache=False)
    found = analyze(state, estimator="ks", cache=False)
    lost = {name for name, (_, known) in EXTRA.items() if not known}
    assert {s.name for s in found.skipped if not s.by_design} == lost
