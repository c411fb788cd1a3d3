"""Auxiliary losses of MoE-LoRA written with plain Python loops over lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def softmax(row: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def balance(logits: Rows, top_k: int, mask: Sequence[bool] | None = None) -> float:
    """E * sum_e f_e P_e over the tokens kept by the mask."""
    kept = [row for i, row in enumerate(logits) if mask is None or mask[i]]
    if not kept:
        return 0.0
    num_experts = len(kept[0])
    picks = [0] * num_experts
    for row in kept:
        for expert in sorted(range(num_experts), key=lambda e: -row[e])[:top_k]:
            picks[expert] += 1
    means = [sum(softmax(row)[e] for row in kept) / len(kept) for e in range(num_experts)]
    return num_experts * sum(n / sum(picks) * p for n, p in zip(picks, means, strict=True))


def z_loss(logits: Rows, mask: Sequence[bool] | None = None) -> float:
    kept = [row for i, row in enumerate(logits) if mask is None or mask[i]]
    return sum(math.log(sum(map(math.exp, row))) ** 2 for row in kept) / max(len(kept), 1)


def unit(row: Sequence[float]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in row) + 1e-12)
    return [value / norm for value in row]


def dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def supervised_contrast(rows: Rows, ids: Sequence[int], temperature: float) -> float:
    """Mean over anchors with a positive of the mean -log share of its positives among all others."""
    rows, terms = [unit(row) for row in rows], []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if ids[j] == ids[i]]
        if positives:
            total = sum(math.exp(dot(anchor, rows[j]) / temperature) for j in others)
            shares = [math.exp(dot(anchor, rows[j]) / temperature) / total for j in positives]
            terms.append(-sum(map(math.log, shares)) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def comoe(tokens: Sequence[Rows], chosen: Sequence[Sequence[int]], temperature: float) -> float:
    """Mean over tokens with a pair of CoMoE's sum over chosen experts."""
    sums = []
    for outputs, picks in zip(tokens, chosen, strict=True):
        rows = [unit(row) for row in outputs]
        idle = [e for e in range(len(rows)) if e not in picks]
        total = 0.0
        for i in picks:
            negative = sum(math.exp(dot(rows[i], rows[k]) / temperature) for k in idle)
            pairs = [math.exp(dot(rows[i], rows[p]) / temperature) for p in picks if p != i]
            total += sum(-math.log(p / (p + negative)) for p in pairs) / max(len(pairs), 1)
        if len(picks) > 1:
            sums.append(total)
    return sum(sums) / len(sums) if sums else 0.0
