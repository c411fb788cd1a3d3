"""Two sets of alphas of one model, or of two: what agrees, how layers rank, what moved."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from alphalloc.alphas import ModelAlphas
from alphalloc.errors import DocumentError

WEIGHTWATCHER_NAMES = ("longname", "name")


@dataclass(frozen=True)
class Scores:
    """Alphas by module path, with the block each belongs to where that is known; ``label`` says whose they are.

    Where several matrices share a module (experts of a fused tensor) the tensor name stands for it.
    """

    label: str
    estimator: str
    alphas: Mapping[str, float | None]
    layers: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, alphas: ModelAlphas, label: str | None = None) -> Scores:
        """Return the scores of an alphas document."""
        counts = Counter(matrix.module for matrix in alphas.matrices)
        by_module = {m.module if counts[m.module] == 1 else _module(m.name): m for m in alphas.matrices}
        return cls(
            label or alphas.model.id,
            alphas.analysis.estimator,
            {name: matrix.alpha for name, matrix in by_module.items()},
            {name: (matrix.stack, matrix.layer) for name, matrix in by_module.items() if matrix.layer >= 0},
        )


@dataclass(frozen=True)
class Pair:
    """One matrix or layer in both: ``difference`` is second - first."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first


@dataclass(frozen=True)
class AlphaComparison:
    """``matrices`` and ``layers`` with an alpha in both, in the order of the first; Spearman's rank correlation of
    either (None below two, or when one side is constant); names that only one side has, or has an alpha for."""

    first: str
    second: str
    estimators: tuple[str, str]
    matrices: tuple[Pair, ...]
    layers: tuple[Pair, ...]
    matrix_correlation: float | None
    layer_correlation: float | None
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def moved(self) -> tuple[Pair, ...]:
        """The matrices by the size of their difference, the largest first."""
        return tuple(sorted(self.matrices, key=lambda pair: (-abs(pair.difference), pair.name)))

    @property
    def mean_difference(self) -> float | None:
        """Mean of |second - first| over the matrices."""
        return fmean(abs(pair.difference) for pair in self.matrices) if self.matrices else None


def compare_alphas(first: Scores, second: Scores) -> AlphaComparison:
    """Return what two sets of alphas have in common. Raises DocumentError when no matrix is in both.

    Names are joined on the module path; where one side lacks a prefix of the other's ("model.", "bert."), on the
    longest common ending, if that is unique on both sides. Layers are means over the matrices in both.
    """
    joined = _join(first, second)
    pairs = [
        Pair(name, a, b)
        for name, other in joined.items()
        if (a := first.alphas[name]) is not None and (b := second.alphas[other]) is not None
    ]
    if not joined:
        examples = ", ".join(repr(next(iter(side.alphas), "nothing")) for side in (first, second))
        raise DocumentError(
            f"{first.label} and {second.label} have no matrix in common; their first names are {examples}"
        )
    layers = _layer_pairs(pairs, first.layers or {name: second.layers[other] for name, other in joined.items()})
    matched = {name for pair in pairs for name in (pair.name, joined[pair.name])}
    return AlphaComparison(
        first=first.label,
        second=second.label,
        estimators=(first.estimator, second.estimator),
        matrices=tuple(pairs),
        layers=layers,
        matrix_correlation=spearman([pair.first for pair in pairs], [pair.second for pair in pairs]),
        layer_correlation=spearman([pair.first for pair in layers], [pair.second for pair in layers]),
        only_first=tuple(name for name in first.alphas if name not in matched),
        only_second=tuple(name for name in second.alphas if name not in matched),
    )


def read_weightwatcher(path: str | os.PathLike[str]) -> Scores:
    """Return the scores in a CSV of WeightWatcher's ``details`` frame; its -1 for a failed fit becomes no alpha.

    Raises DocumentError when it is no such file.
    """
    source = Path(path)
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DocumentError(f"{source}: cannot be read as CSV: {exc}") from exc
    column = next((name for name in WEIGHTWATCHER_NAMES if rows and name in rows[0]), None)
    if column is None or "alpha" not in rows[0]:
        raise DocumentError(
            f"{source}: expected the columns of WeightWatcher's details, among them 'longname' and 'alpha'"
        )
    alphas = {_module(str(row[column])): _weightwatcher_alpha(row["alpha"], source) for row in rows}
    return Scores(source.name, "WeightWatcher", alphas, {})


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equal values sharing their mean rank; None below two or for a constant."""
    if len(first) < 2:
        return None
    x, y = ranks(first), ranks(second)
    middle = (len(x) + 1) / 2
    covariance = math.fsum((a - middle) * (b - middle) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(math.fsum((a - middle) ** 2 for a in x) * math.fsum((b - middle) ** 2 for b in y))
    return max(-1.0, min(1.0, covariance / spread)) if spread > 0 else None


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, the smallest 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for position in order[start:stop]:
            found[position] = (start + 1 + stop) / 2
        start = stop
    return found


def _module(name: str) -> str:
    return name.removesuffix(".weight").replace("/", ".")


def _weightwatcher_alpha(text: str | None, source: Path) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError as exc:
        raise DocumentError(f"{source}: expected a number in column 'alpha', found {text!r}") from exc
    return value if math.isfinite(value) and value > 0 else None


def _join(first: Scores, second: Scores) -> dict[str, str]:
    """Names of the first to names of the second."""
    exact = {name: name for name in first.alphas if name in second.alphas}
    if exact:
        return exact
    endings = _unique_endings(second.alphas)
    joined: dict[str, str] = {}
    for ending, name in _unique_endings(first.alphas).items():  # shorter endings come later and do not overwrite
        if ending in endings:
            joined.setdefault(name, endings[ending])
    used = list(joined.values())
    return {name: joined[name] for name in first.alphas if name in joined and used.count(joined[name]) == 1}


def _unique_endings(names: Iterable[str]) -> dict[str, str]:
    """Every dotted ending that belongs to one name alone and keeps the block's number, the longest first."""
    owners: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if start == 0 or any(part.isdigit() for part in parts[start:]):
                owners.setdefault(".".join(parts[start:]), []).append(name)
    unique = {ending: found[0] for ending, found in owners.items() if len(found) == 1}
    return dict(sorted(unique.items(), key=lambda item: -item[0].count(".")))


def _layer_pairs(pairs: Iterable[Pair], layers: Mapping[str, tuple[str, int]]) -> tuple[Pair, ...]:
    blocks: dict[tuple[str, int], list[Pair]] = {}
    for pair in pairs:
        if pair.name in layers:
            blocks.setdefault(layers[pair.name], []).append(pair)
    return tuple(
        Pair(f"{stack} {layer}".strip(), fmean(p.first for p in members), fmean(p.second for p in members))
        for (stack, layer), members in blocks.items()
    )
