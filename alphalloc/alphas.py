"""The alphas of a model: one MatrixAlpha a weight matrix, one LayerAlpha a block, ModelAlphas for the whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alphalloc.allocation.references import Count
from alphalloc.allocation.schedule import AnalysisRef, CreatedBy, LayerRef, ModelRef
from alphalloc.documents import parse_document, pretty_json, read_document, write_atomic
from alphalloc.errors import DocumentError, LayerWithoutAlphaError, MissingExtraError

if TYPE_CHECKING:
    import pandas

KIND = "ModelAlphas"
SCHEMA_VERSION = "1.0"

Exponent = Annotated[float, Field(strict=True, gt=0, le=1000)]  # an estimator gives at most 200


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class LikelihoodRatio(_Frozen):
    """Power law against another family on the same tail; positive ``ratio``: the power law is likelier.

    ``normalized``: ``ratio`` / (sd·√n); ``p_value``: two-sided (``fits.likelihoods`` has the formulas).
    """

    ratio: float
    normalized: float
    p_value: float


class EsdHistogram(_Frozen):
    """The spectrum as ``counts`` of eigenvalues in equal bins of log10 λ from ``log10_low`` to ``log10_high``."""

    log10_low: float = Field(ge=-330, le=310)  # float64 ends within
    log10_high: float = Field(ge=-330, le=310)
    counts: tuple[Count, ...] = Field(min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _range(self) -> EsdHistogram:
        if not self.log10_low < self.log10_high:
            raise ValueError(f"log10_low {self.log10_low} is not below log10_high {self.log10_high}")
        return self


class MatrixAlpha(_Frozen):
    """One weight matrix: where it sits, its power-law fit and its spectral metrics.

    ``rows`` x ``cols`` is out_features x in_features. ``alpha`` and the other fit numbers are null unless ``status`` is
    "ok"; ``reason`` says why. The fit's fields are those of ``fits.PowerLawFit``, the metrics those of
    ``spectra.SpectralMetrics``; under FARMS, whose eigenvalues are of sub-matrices, only ``frobenius_norm`` is given.

    Null unless asked for: ``alpha_low`` to ``alpha_high``, the band of ``fits.stability``; ``mp_edge``, the upper edge
    of the Marchenko-Pastur bulk as an eigenvalue, and ``num_spikes`` beyond it; ``gof_p_value`` of the bootstrap and
    ``likelihood_ratios`` by alternative; ``mp_softrank`` and ``rand_distance`` of ``spectra.marchenko_pastur``;
    ``esd_histogram``, the spectrum as a report draws it.
    """

    name: str
    module: str
    layer: int
    stack: str = ""
    role: str
    rows: int
    cols: int
    dtype: str
    quantized: bool = False
    estimator: str
    alpha: Exponent | None
    xmin: float | None
    ks_distance: float | None
    num_tail: int
    sigma: float | None
    status: str
    reason: str | None = None
    num_eigs: int
    num_zero: int
    spectral_norm: float | None
    frobenius_norm: float | None
    stable_rank: float | None
    log10_spectral_norm: float | None
    alpha_weighted: float | None
    log_alpha_norm: float | None
    entropy: float | None
    rank: int | None
    alpha_low: float | None = None
    alpha_high: float | None = None
    mp_edge: float | None = None
    num_spikes: int | None = None
    mp_softrank: float | None = None
    rand_distance: float | None = None
    gof_p_value: float | None = None
    likelihood_ratios: dict[str, LikelihoodRatio] | None = None
    esd_histogram: EsdHistogram | None = None

    @property
    def stability_band(self) -> tuple[float, float] | None:
        """Lowest and highest alpha of the stability analysis, None where it was not asked for."""
        return None if self.alpha_low is None or self.alpha_high is None else (self.alpha_low, self.alpha_high)


class LayerAlpha(_Frozen):
    """One transformer block: ``alpha`` is the unweighted mean over its valid matrices, null when there is none.

    ``roles`` gives the mean alpha of each role in the block; ``num_valid`` of ``num_matrices`` have an alpha.
    """

    layer: Count
    stack: str = ""
    alpha: Exponent | None
    num_matrices: Count
    num_valid: Count
    roles: dict[str, float | None]
    filled: bool = False


class SkippedMatrix(_Frozen):
    """A tensor that was left out, and why; ``by_design`` is False where one would expect it to be analysed."""

    name: str
    shape: tuple[int, ...]
    reason: str
    by_design: bool = True


class ModelAlphas(_Frozen):
    """The alphas of every analysed matrix of a model and their layer means; what ``alphas.json`` holds.

    It can be handed to ``alphalloc.allocate`` as it is.
    """

    kind: Literal["ModelAlphas"] = "ModelAlphas"
    schema_version: str = SCHEMA_VERSION
    created_by: CreatedBy
    model: ModelRef
    analysis: AnalysisRef
    layers: tuple[LayerAlpha, ...]
    matrices: tuple[MatrixAlpha, ...]
    skipped: tuple[SkippedMatrix, ...] = ()
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _each_layer_once(self) -> ModelAlphas:
        refs = [(layer.stack, layer.layer) for layer in self.layers]
        if len(set(refs)) != len(refs):
            raise ValueError("a layer is listed twice")
        return self

    @property
    def per_layer(self) -> tuple[float, ...]:
        """One alpha a layer, in order. Raises LayerWithoutAlphaError when a layer has none."""
        missing = [_label(layer) for layer in self.layers if layer.alpha is None]
        if missing:
            why = next((matrix for matrix in self.matrices if matrix.alpha is None and matrix.layer >= 0), None)
            first = "" if why is None else f" (first: {why.name}: {why.status}, {why.reason})"
            raise LayerWithoutAlphaError(
                f"no matrix of {', '.join(missing)} has a valid alpha{first}; "
                'analyze with another estimator, or fill the gap: fill="median", analyze --fill median'
            )
        return tuple(layer.alpha for layer in self.layers if layer.alpha is not None)

    @property
    def layer_refs(self) -> tuple[LayerRef, ...]:
        """Index and stack of every layer, in order."""
        return tuple(LayerRef(layer=layer.layer, stack=layer.stack) for layer in self.layers)

    @property
    def model_ref(self) -> ModelRef:
        """The model these alphas are of."""
        return self.model

    @property
    def analysis_ref(self) -> AnalysisRef:
        """Estimator and settings these alphas were computed with."""
        return self.analysis

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings that a schedule built from these alphas carries on."""
        return self.warnings

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the document to ``path`` atomically and return the path."""
        return write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelAlphas:
        """Return the alphas saved at ``path``. Raises DocumentError or SchemaVersionError."""
        return cls._validated(read_document(path, kind=KIND, major=1), str(path))

    def to_json(self) -> str:
        """Return the document as indented JSON with sorted keys; the same alphas give the same bytes."""
        return pretty_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> ModelAlphas:
        """Return the alphas in ``text``. Raises DocumentError or SchemaVersionError."""
        return cls._validated(parse_document(text, kind=KIND, major=1), "document")

    @classmethod
    def _validated(cls, value: dict[str, Any], where: str) -> ModelAlphas:
        try:
            return cls.model_validate(value)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DocumentError(f"{where}: not a valid alphas document: {place}: {first['msg']}") from exc

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row a matrix, columns as in MatrixAlpha. Raises MissingExtraError without pandas."""
        try:
            import pandas
        except ImportError as exc:
            raise MissingExtraError("to_pandas() needs pandas: pip install 'alphalloc[pandas]'") from exc
        columns = list(MatrixAlpha.model_fields)
        return pandas.DataFrame([matrix.model_dump() for matrix in self.matrices], columns=columns)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a line of totals and a table with a bar a layer."""
        totals = self.summary()
        bar = '<div style="width:{:.0f}px;height:.7em;background:#3b7dd8;border-radius:2px"></div>'
        largest = totals["max_alpha"] or 1.0
        rows = "".join(
            f'<tr><th scope="row">{escape(_label(layer))}</th>'
            f"<td>{'–' if layer.alpha is None else format(layer.alpha, '.3f')}</td>"
            f'<td style="text-align:left">{bar.format(240 * (layer.alpha or 0.0) / largest)}</td>'
            f"<td>{layer.num_valid} of {layer.num_matrices}</td></tr>"
            for layer in self.layers
        )
        head = "".join(f'<th scope="col">{name}</th>' for name in ("layer", "alpha", "", "matrices"))
        mean = "–" if totals["mean_alpha"] is None else f"{totals['mean_alpha']:.3f}"
        words = f"<b>{escape(self.model.id)}</b>: mean alpha {mean} over {totals['num_layers']} layers"
        return (
            f"<p>{words} ({escape(self.analysis.estimator)})</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def summary(self) -> dict[str, Any]:
        """Return counts and the mean, smallest and largest layer alpha; layers without one do not enter."""
        alphas = [layer.alpha for layer in self.layers if layer.alpha is not None]
        return {
            "model": self.model.id,
            "estimator": self.analysis.estimator,
            "num_layers": len(self.layers),
            "num_matrices": len(self.matrices),
            "num_valid": sum(matrix.alpha is not None for matrix in self.matrices),
            "num_skipped": len(self.skipped),
            "mean_alpha": fmean(alphas) if alphas else None,
            "min_alpha": min(alphas, default=None),
            "max_alpha": max(alphas, default=None),
        }


def layer_alphas(matrices: Iterable[MatrixAlpha]) -> tuple[LayerAlpha, ...]:
    """Return one LayerAlpha a block from its matrices, in the order in which the blocks first appear.

    The mean is unweighted over matrices, as in AlphaLoRA (arXiv 2410.10054); the experts of a mixture block (several
    matrices of one role) are averaged per role first. Matrices outside blocks (layer -1) do not enter.
    """
    blocks: dict[tuple[str, int], list[MatrixAlpha]] = {}
    for matrix in matrices:
        if matrix.layer >= 0:
            blocks.setdefault((matrix.stack, matrix.layer), []).append(matrix)
    return tuple(_layer_alpha(stack, layer, members) for (stack, layer), members in blocks.items())


def fill_median(layers: tuple[LayerAlpha, ...]) -> tuple[LayerAlpha, ...]:
    """Return the layers with every missing alpha replaced by the median of the others, marked ``filled``."""
    known = sorted(layer.alpha for layer in layers if layer.alpha is not None)
    if not known:
        raise LayerWithoutAlphaError("no layer has a valid alpha, so there is no median to fill with")
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return tuple(
        layer if layer.alpha is not None else layer.model_copy(update={"alpha": middle, "filled": True})
        for layer in layers
    )


def _layer_alpha(stack: str, layer: int, members: list[MatrixAlpha]) -> LayerAlpha:
    by_role: dict[str, list[float]] = {}
    for matrix in members:
        known = by_role.setdefault(matrix.role, [])
        if matrix.alpha is not None:
            known.append(matrix.alpha)
    roles = {role: fmean(alphas) if alphas else None for role, alphas in by_role.items()}
    valid = [alpha for alpha in roles.values() if alpha is not None]
    return LayerAlpha(
        layer=layer,
        stack=stack,
        alpha=fmean(valid) if valid else None,
        num_matrices=len(members),
        num_valid=sum(matrix.alpha is not None for matrix in members),
        roles=roles,
    )


def _label(layer: LayerAlpha) -> str:
    return f"{layer.stack} layer {layer.layer}".strip()
