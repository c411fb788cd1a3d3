"""What is measured of a matrix beside its alpha when asked for: how far the number can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from alphalloc.errors import AnalysisError
from alphalloc.fits import PowerLawFit
from alphalloc.fits.goodness import REPLICAS, goodness_p_value
from alphalloc.fits.likelihoods import likelihood_ratios
from alphalloc.fits.stability import stability
from alphalloc.spectra import (
    ESD,
    FarmsSettings,
    farms_cost,
    log_histogram,
    marchenko_pastur,
    mp_softrank,
    rand_distance,
)

SEED = 0


@dataclass(frozen=True)
class Trust:
    """What to measure: ``stability`` (band, bulk edge, spikes), ``gof`` (p-value, likelihood ratios), ``randomize``
    (soft rank, distance from noise), ``histograms`` (the spectrum for a report, bulk edge, spikes)."""

    stability: bool = False
    gof: bool = False
    randomize: bool = False
    histograms: bool = False

    def checked(self, farms: FarmsSettings | None) -> Trust:
        """Return self. Raises AnalysisError for what has no meaning under FARMS."""
        if farms is not None and (self.gof or self.randomize):
            raise AnalysisError(
                "gof and randomize need the whole spectrum: the windows of FARMS overlap, so their eigenvalues are not "
                "independent; drop them or the sampling"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """Return what an alphas document says about it: nothing that was not asked for.

        Histograms are not named: they show a spectrum and change no number, so no schedule's id may depend on them.
        """
        measures = {"stability": self.stability, "gof": self.gof, "randomize": self.randomize}
        chosen: dict[str, Any] = {name: True for name, asked in measures.items() if asked}
        if self.gof:
            chosen["gof_replicas"] = REPLICAS
        return {**chosen, "seed": SEED} if chosen else {}

    def fields(
        self,
        spectrum: ESD,
        fit: PowerLawFit,
        function: Callable[..., PowerLawFit],
        fraction: float,
        farms: FarmsSettings | None,
    ) -> dict[str, Any]:
        """Return the fields of MatrixAlpha that were asked for; ``function`` made ``fit`` of ``spectrum``."""
        found: dict[str, Any] = {}
        if self.stability:
            found |= _band(spectrum, fit, function, fraction, farms)
        if (self.stability or self.histograms) and farms is None:
            bulk = marchenko_pastur(spectrum)
            found |= {"mp_edge": bulk.edge, "num_spikes": bulk.num_spikes}
        if self.histograms:
            histogram = log_histogram(spectrum)
            found["esd_histogram"] = None if histogram is None else asdict(histogram)
        if self.gof and fit.alpha is not None:
            found["gof_p_value"] = goodness_p_value(function, spectrum.eigs, seed=SEED)
            ratios = likelihood_ratios(spectrum.eigs, fit)
            found["likelihood_ratios"] = {name: asdict(ratio) for name, ratio in ratios.items()}
        if self.randomize:
            found |= {"mp_softrank": mp_softrank(spectrum), "rand_distance": rand_distance(spectrum, seed=SEED)}
        return found


def _band(
    spectrum: ESD, fit: PowerLawFit, function: Callable[..., PowerLawFit], fraction: float, farms: FarmsSettings | None
) -> dict[str, float]:
    rows, cols = spectrum.rows, spectrum.cols
    if farms is not None:  # Σλ is then the squared norm of all windows together
        cost = farms_cost((rows, cols), farms)
        rows, cols = cost.windows * cost.rows, cost.cols
    band = stability(fit.estimator, function, spectrum.eigs, rows=rows, cols=cols, fraction=fraction, seed=SEED)
    return {} if band is None else {"alpha_low": band.low, "alpha_high": band.high}
