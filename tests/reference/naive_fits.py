"""Every estimator once more, straight from its definition: loops, no pruning, no shared code."""

from __future__ import annotations

import math

import numpy as np


def tail(eigs, i):
    """alpha and D of the tail that starts at index i."""
    n = len(eigs) - i
    logs = [math.log(eigs[j] / eigs[i]) for j in range(i, len(eigs))]
    total = math.fsum(logs)
    if total == 0:
        return math.inf, math.inf
    alpha = 1 + n / total
    distance = max(abs(1 - math.exp((1 - alpha) * logs[j]) - j / n) for j in range(n))
    return alpha, distance


def best(eigs, candidates, tie=0.0):
    """The candidate with the smallest D, the first among those within ``tie``; None when none has alpha > 1."""
    found = []
    for i in candidates:
        alpha, distance = tail(eigs, i)
        if math.isfinite(alpha) and alpha > 1:
            found.append((distance, i))
    if not found:
        return None
    smallest = min(found)[0]
    return min(i for distance, i in found if distance <= smallest + tie)


def ks(eigs):
    return best(eigs, range(len(eigs) - 1))


def peak(eigs):
    logs = [math.log10(value / eigs[-1]) for value in eigs]
    lowest = logs[0]
    counts = [0] * 100
    for value in logs:
        counts[min(math.floor((value - lowest) / -lowest * 100 + 1e-6), 99)] += 1
    return eigs[-1] * 10 ** (lowest + counts.index(max(counts)) * -lowest / 100)


def xmin_peak(eigs):
    top = peak(eigs)
    inside = [i for i in range(len(eigs) - 1) if 0.95 * top * (1 - 1e-9) <= eigs[i] <= 1.5 * top * (1 + 1e-9)]
    return best(eigs, inside, tie=1e-12)


def xmin_peak_reference(eigs):
    top = peak(eigs)
    lower = math.log10(0.95 * top)
    return best(eigs, [i for i in range(len(eigs) - 1) if lower <= eigs[i] <= 1.5 * top])


def xmin_peak_robust(eigs):
    """alpha and xmin."""
    logs = np.log10(eigs)
    low, high = np.quantile(logs, 0.05), np.quantile(logs, 0.995)
    x = np.array([value for value in logs if low <= value <= high])
    spread = np.quantile(x, 0.75) - np.quantile(x, 0.25)
    h = 1.8 * min(np.std(x, ddof=1), spread / 1.349) * len(x) ** -0.2
    grid = np.linspace(low, high, 512)
    density = [math.fsum(math.exp(-0.5 * ((g - v) / h) ** 2) for v in x) for g in grid]
    m = int(np.argmax(density))
    mode = grid[m]
    if 0 < m < 511:
        a, b, c = density[m - 1], density[m], density[m + 1]
        mode += 0.5 * (a - c) / (a - 2 * b + c) * (grid[1] - grid[0])
    xmin = 10**mode
    inside = [value for value in eigs if value >= xmin]
    return 1 + len(inside) / math.fsum(math.log(value / xmin) for value in inside), xmin
