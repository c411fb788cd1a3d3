"""From a weight matrix to its empirical spectral density: pure numerics on numpy arrays (torch tensors are welcome).

``esd(weight)`` is the whole room in one call; ``gram`` and ``eigenvalues`` are its two steps, ``spectral_metrics`` what
can be read off a spectrum beside the power law. ``farms_esd`` pools the spectra of sub-matrices instead;
``marchenko_pastur`` says what noise of the same shape would look like.
"""

from alphalloc.spectra.eigenvalues import eigenvalues
from alphalloc.spectra.esd import ESD, esd
from alphalloc.spectra.farms import FarmsCost, FarmsSettings, farms_cost, farms_esd
from alphalloc.spectra.gram import Gram, gram
from alphalloc.spectra.histogram import LogHistogram, log_histogram
from alphalloc.spectra.marchenko_pastur import Bulk, marchenko_pastur, mp_softrank, rand_distance, random_spectrum
from alphalloc.spectra.metrics import SpectralMetrics, spectral_metrics

__all__ = [
    "ESD",
    "Bulk",
    "FarmsCost",
    "FarmsSettings",
    "Gram",
    "LogHistogram",
    "SpectralMetrics",
    "eigenvalues",
    "esd",
    "farms_cost",
    "farms_esd",
    "gram",
    "log_histogram",
    "marchenko_pastur",
    "mp_softrank",
    "rand_distance",
    "random_spectrum",
    "spectral_metrics",
]
