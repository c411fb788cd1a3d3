"""From a weight matrix to its empirical spectral density: pure numerics on numpy arrays (torch tensors are welcome).

``esd(weight)`` is the whole room in one call; ``gram`` and ``eigenvalues`` are its two steps, ``spectral_metrics`` what
can be read off a spectrum beside the power law.
"""

from alphalloc.spectra.eigenvalues import eigenvalues
from alphalloc.spectra.esd import ESD, esd
from alphalloc.spectra.gram import Gram, gram
from alphalloc.spectra.metrics import SpectralMetrics, spectral_metrics

__all__ = ["ESD", "Gram", "SpectralMetrics", "eigenvalues", "esd", "gram", "spectral_metrics"]
