"""Clauset's semi-parametric bootstrap word for word, with inverse-transform sampling and Python loops."""

from __future__ import annotations

import random


def p_value(fit, eigs, replicas, seed=1):
    generator = random.Random(seed)
    found = fit(eigs)
    below = [float(value) for value in eigs if value < found.xmin]
    share = found.num_tail / len(eigs)
    worse = 0
    for _ in range(replicas):
        values = [
            found.xmin * (1 - generator.random()) ** (-1 / (found.alpha - 1))
            if generator.random() < share
            else generator.choice(below)
            for _ in eigs
        ]
        worse += fit(values).ks_distance >= found.ks_distance
    return worse / replicas
