"""A LoRA adapter as PEFT saves it: every pair of factors is one matrix, scale · B A, which is never multiplied out.

The scale is lora_alpha / r, or lora_alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732); ``alpha_pattern`` sets
lora_alpha module by module, and the rank is that of the stored factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphalloc.checkpoint.matrices import FLOAT_DTYPES, StoredTensor
from alphalloc.checkpoint.values import LowRankLoad
from alphalloc.errors import CorruptCheckpointError, UnsupportedCheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_PLAIN = re.compile(r"\^?(?:\w|\.|-|\\\.)+\$?")
_MAX_PATTERNS = 10_000


def low_rank_tensors(folder: Path, tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> list[StoredTensor]:
    """Return one tensor a pair of factors, named as the weight it changes, and all other tensors as they are.

    Raises UnsupportedCheckpointError for an adapter that is not LoRA or that needs the base weights (DoRA),
    CorruptCheckpointError for a factor without its partner, factors that do not go together, or no lora_alpha.
    """
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA" or config.get("use_dora"):
        what = "DoRA, whose update depends on the base weights" if config.get("use_dora") else f"of type {kind}"
        raise UnsupportedCheckpointError(f"{folder}: expected a LoRA adapter, found one {what}; merge it into its base")
    factors: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        match = _FACTOR.fullmatch(tensor.name)
        if match is not None and len(tensor.shape) == 2 and tensor.dtype in FLOAT_DTYPES:
            factors.setdefault(match[1], {})[match[2]] = tensor
    if not factors:
        raise UnsupportedCheckpointError(f"{folder}: expected pairs of lora_A and lora_B weights, found none")
    used = {factor.name for pair in factors.values() for factor in pair.values()}
    pairs = [_product(folder, module, pair, config) for module, pair in factors.items()]
    return [*pairs, *(tensor for tensor in tensors if tensor.name not in used)]


def lora_scale(config: Mapping[str, Any], module: str, rank: int) -> float | None:
    """Return what B A of ``module`` is multiplied with; None when the config gives no lora_alpha."""
    value = _pattern(config.get("alpha_pattern"), module)
    lora_alpha = config.get("lora_alpha") if value is None else value
    if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float) or not math.isfinite(lora_alpha):
        return None
    return float(lora_alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _product(folder: Path, module: str, pair: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> StoredTensor:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None:
        raise CorruptCheckpointError(f"{folder}: {module!r} has a lora_{'B' if a is None else 'A'} without its partner")
    rank = a.shape[0]
    if b.shape[1] != rank or rank < 1:
        raise CorruptCheckpointError(
            f"{folder}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of {module!r} do not go together"
        )
    scale = lora_scale(config, module, rank)
    if scale is None:
        raise CorruptCheckpointError(f"{folder}: expected a number lora_alpha in {ADAPTER_CONFIG}; copy that file too")
    shape = (b.shape[0], a.shape[1])
    return StoredTensor(
        name=f"{module}.weight", shape=shape, dtype=a.dtype, nbytes=a.nbytes + b.nbytes, source=str(folder),
        load=LowRankLoad(b.load, a.load, shape, scale), parts_of=tuple(dict.fromkeys((a.source, b.source))),
    )  # fmt: skip


def _pattern(patterns: Any, module: str) -> Any:
    """The value of the first pattern that fits the end of the module path, as PEFT looks them up."""
    if not isinstance(patterns, Mapping) or len(patterns) > _MAX_PATTERNS:
        return None
    for pattern, value in patterns.items():
        # nothing that repeats: a crafted expression could take for ever
        if not _PLAIN.fullmatch(str(pattern)):
            raise UnsupportedCheckpointError(
                f"{ADAPTER_CONFIG}: alpha_pattern {str(pattern)[:200]!r}: expected the end of a module path"
            )
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return None
