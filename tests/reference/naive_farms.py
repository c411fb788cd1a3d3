"""FARMS straight from its definition: nested loops, one SVD a window."""

from __future__ import annotations

import math

import numpy as np


def pooled_eigenvalues(weight, rows, ratio, ops):
    """The pooled eigenvalues, ascending, and how many were dropped."""
    m, n = weight.shape
    r = max(1, min(rows, m, math.floor(n / ratio)))
    c = max(1, math.floor(r * ratio))
    pooled, dropped = [], 0
    for i in starts(m, r, ops):
        for j in starts(n, c, ops):
            values = np.linalg.svd(weight[i : i + r, j : j + c], compute_uv=False) ** 2
            for value in values:
                if value > min(r, c) * 2.2e-16 * max(values):
                    pooled.append(value)
                else:
                    dropped += 1
    return sorted(pooled), dropped


def starts(dim, size, ops):
    step = max(1, (dim - size) // max(1, ops - 1))
    return [i * step for i in range(min(ops, (dim - size) // step + 1))]
