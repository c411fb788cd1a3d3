"""Alphas of models that never were, of any depth, with histograms: what reports are tried on."""

from __future__ import annotations

import math
import random

from alphalloc.allocation.references import CreatedBy
from alphalloc.allocation.schedule import AnalysisRef, ModelRef
from alphalloc.alphas import EsdHistogram, MatrixAlpha, ModelAlphas, SkippedMatrix, layer_alphas

ROLES = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip


def made_matrix(layer: int, role: str, *, prefix: str = "model.layers", seed: int = 0, side: int = 4096) -> MatrixAlpha:
    """One matrix with a band, a bulk edge and a histogram of ``side`` eigenvalues."""
    dice = random.Random(f"{seed} {layer} {role}")
    alpha = 2.0 + math.sin(layer / 5) / 2 + dice.random()
    counts = [dice.randrange(side // 40) for _ in range(63)]
    module = f"{prefix}.{layer}.{ROLES.get(role, 'block')}.{role}"
    return MatrixAlpha(
        name=f"{module}.weight", module=module, layer=layer, role=role, rows=side, cols=side, dtype="BF16",
        estimator="xmin_peak_robust", alpha=alpha, xmin=dice.uniform(0.5, 2.0), ks_distance=dice.uniform(0.01, 0.1),
        num_tail=side // 3, sigma=(alpha - 1) / math.sqrt(side // 3), status="ok", num_eigs=sum(counts) + 5, num_zero=0,
        spectral_norm=30.0, frobenius_norm=60.0, stable_rank=4.0, log10_spectral_norm=1.5, alpha_weighted=3.0,
        log_alpha_norm=4.0, entropy=0.9, rank=side, alpha_low=alpha * 0.98, alpha_high=alpha * 1.03,
        mp_edge=dice.uniform(2.0, 4.0), num_spikes=dice.randrange(90),
        esd_histogram=EsdHistogram(log10_low=-4.5, log10_high=2.5, counts=(*counts, 5)),
    )  # fmt: skip


def made_alphas(
    layers: int,
    *,
    roles: tuple[str, ...] = tuple(ROLES),
    model: str = "made-up/model",
    estimator: str = "xmin_peak_robust",
) -> ModelAlphas:
    """The alphas of a model of ``layers`` layers; the same arguments give the same numbers."""
    matrices = tuple(made_matrix(layer, role, seed=len(estimator)) for layer in range(layers) for role in roles)
    matrices = tuple(matrix.model_copy(update={"estimator": estimator}) for matrix in matrices)
    return made_of(matrices, model=model, estimator=estimator)


def made_of(
    matrices: tuple[MatrixAlpha, ...], *, model: str = "made-up/model", estimator: str = "xmin_peak_robust"
) -> ModelAlphas:
    """The document of these matrices, with two norms of each layer left out."""
    layers = layer_alphas(matrices)
    norms = ("input_layernorm", "post_attention_layernorm")
    return ModelAlphas(
        created_by=CreatedBy.current(),
        model=ModelRef(id=model, num_layers=len(layers)),
        analysis=AnalysisRef(estimator=estimator, settings={"stability": True, "include": [], "fill": None}),
        layers=layers,
        matrices=matrices,
        skipped=tuple(
            SkippedMatrix(name=f"model.layers.{layer.layer}.{norm}.weight", shape=(8192,), reason="1-D (bias or norm)")
            for layer in layers
            for norm in norms
        ),
    )
