"""How far several alphas documents of one model agree: rank correlations of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import StatisticsError, correlation, fmean

from alphalloc.alphas import ModelAlphas
from alphalloc.report.charts import number
from alphalloc.report.model_charts import label
from alphalloc.report.tables import Table


def agreement_table(documents: Sequence[ModelAlphas], names: Sequence[str]) -> Table:
    """Return one row a pair: Spearman's rank correlation of the layers both have, and the mean difference of alpha."""
    rows = []
    for (first, one), (second, other) in combinations(zip(names, documents, strict=True), 2):
        a, b = _layers(one), _layers(other)
        shared = [name for name in a if name in b]
        pairs = [(a[name], b[name]) for name in shared]
        apart = number(fmean(abs(x - y) for x, y in pairs), 3) if pairs else "–"
        rows.append((f"{first} and {second}", number(rank_correlation(pairs), 3), apart, str(len(pairs))))
    return Table(
        "Agreement of the documents", ("documents", "rank correlation", "mean difference", "layers"), tuple(rows)
    )


def document_names(documents: Sequence[ModelAlphas], files: Sequence[str]) -> tuple[str, ...]:
    """Return what tells the documents apart: their estimators, or the files where those are the same."""
    estimators = [document.analysis.estimator for document in documents]
    if len(set(estimators)) == len(estimators):
        return tuple(estimators)
    return tuple(f"{file} ({estimator})" for file, estimator in zip(files, estimators, strict=True))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation, equal values sharing their mean rank; None below two or for a constant."""
    if len(pairs) < 2:
        return None
    first, second = zip(*pairs, strict=True)
    try:
        return correlation(_ranks(first), _ranks(second))
    except StatisticsError:  # one side is constant
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def _layers(document: ModelAlphas) -> dict[str, float]:
    return {label(one.stack, one.layer): one.alpha for one in document.layers if one.alpha is not None}
