"""Our ``ks`` fit against WeightWatcher's default and against powerlaw, matrix by matrix, each difference explained."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from alphalloc.analysis.progress import Meter, Progress
from alphalloc.checkpoint import WeightMatrix, open_checkpoint
from alphalloc.errors import AnalysisError, MissingExtraError, NothingToAnalyzeError
from alphalloc.fits import PowerLawFit, ks
from alphalloc.spectra import ESD, esd

TOLERANCE = 1e-6  # relative, on alpha: both sides reduce the matrix themselves
DROPPED_BELOW = 1e-5  # WeightWatcher 0.7.7 leaves out eigenvalues up to this, whatever the scale of the matrix
SMALL, MIN_SIDE, MAX_SIDE, MAX_LENGTH = 20, 8, 15_000, 50_000  # its other limits
TIE = 1e-9


@dataclass(frozen=True)
class Answer:
    """What another library found; ``problem`` when it has no alpha."""

    alpha: float | None
    xmin: float | None
    ks_distance: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Verdict:
    """``agrees``: alpha equal to 1e-6 relative; else ``reason``, the known difference, None if there is none."""

    agrees: bool
    reason: str | None


@dataclass(frozen=True)
class CrosscheckedMatrix:
    """One matrix: our fit and both answers with their verdicts."""

    name: str
    layer: int
    ours: PowerLawFit
    weightwatcher: Answer
    weightwatcher_verdict: Verdict
    powerlaw: Answer
    powerlaw_verdict: Verdict


def crosscheck(
    model: Any,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    layer_pattern: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[CrosscheckedMatrix, ...]:
    """Return, for every block matrix, our ``ks`` fit beside those of WeightWatcher and powerlaw.

    Both run in a child process, one matrix at a time. Raises MissingExtraError without the extra ``crosscheck``,
    AnalysisError when the child dies, and what reading the model raises.
    """
    missing = [name for name in ("weightwatcher", "powerlaw", "torch") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"crosscheck needs {' and '.join(missing)}: pip install 'alphalloc[crosscheck]'; "
            "nothing else of alphalloc uses them"
        )
    checkpoint = open_checkpoint(
        model, revision=revision, include=include, exclude=exclude, layer_pattern=layer_pattern
    )
    if not checkpoint.matrices:
        raise NothingToAnalyzeError(f"no weight matrix of {checkpoint.model_id} is left to check")
    found: list[CrosscheckedMatrix] = []
    meter = Meter(checkpoint.matrices)
    with _asking() as ask:
        for position, matrix in enumerate(checkpoint.matrices):
            found.append(_checked(matrix, ask))
            if progress is not None:
                progress(meter.step(position, None, cached=False))
    return tuple(found)


def _checked(matrix: WeightMatrix, ask: Callable[[np.ndarray[Any, Any], ESD], dict[str, Answer]]) -> CrosscheckedMatrix:
    weight = np.asarray(matrix.load(), dtype=np.float32)  # what WeightWatcher makes of it; exact for half precision
    spectrum = esd(weight)
    ours = ks(spectrum.eigs)
    answers = ask(weight, spectrum)
    return CrosscheckedMatrix(
        name=matrix.name,
        layer=matrix.layer,
        ours=ours,
        weightwatcher=answers["weightwatcher"],
        weightwatcher_verdict=weightwatcher_verdict(spectrum, ours, answers["weightwatcher"]),
        powerlaw=answers["powerlaw"],
        powerlaw_verdict=powerlaw_verdict(spectrum, ours, answers["powerlaw"]),
    )


def weightwatcher_verdict(spectrum: ESD, ours: PowerLawFit, theirs: Answer) -> Verdict:
    """Return whether WeightWatcher agrees, or the reason why not; reasons are tried, not guessed."""
    side, length = sorted((spectrum.rows, spectrum.cols))
    if _agree(ours.alpha, theirs.alpha):
        return Verdict(True, None)
    if theirs.alpha is None and (side < MIN_SIDE or side > MAX_SIDE or length > MAX_LENGTH):
        return Verdict(ours.alpha is None, f"WeightWatcher skips matrices of {spectrum.rows} x {spectrum.cols}")
    if ours.alpha is None and theirs.alpha is None:
        return Verdict(True, "neither has an alpha")
    left = spectrum.eigs[spectrum.eigs > DROPPED_BELOW]
    dropped = len(spectrum.eigs) - len(left)
    if 0 < len(left) < SMALL:
        return Verdict(False, f"with {len(left)} eigenvalues above {DROPPED_BELOW:g} it takes another fit, for small N")
    if dropped and (_agree(ks(left).alpha, theirs.alpha) or len(left) == 0):
        return Verdict(False, f"it drops the {dropped} eigenvalues up to {DROPPED_BELOW:g}; without them we agree")
    return _common_verdict(spectrum, ours, theirs)


def powerlaw_verdict(spectrum: ESD, ours: PowerLawFit, theirs: Answer) -> Verdict:
    """Return whether powerlaw agrees, or the reason why not."""
    if _agree(ours.alpha, theirs.alpha):
        return Verdict(True, None)
    if ours.alpha is None and theirs.alpha is None:
        return Verdict(True, "neither has an alpha")
    ties = len(spectrum.eigs) - len(np.unique(spectrum.eigs))
    if ties:
        return Verdict(False, f"{ties} eigenvalues are repeated; powerlaw takes each value once as a candidate")
    return _common_verdict(spectrum, ours, theirs)


def _common_verdict(spectrum: ESD, ours: PowerLawFit, theirs: Answer) -> Verdict:
    if ours.alpha is None and theirs.alpha is not None:
        return Verdict(False, f"we give no alpha: {ours.reason}")
    if theirs.xmin is not None and theirs.ks_distance is not None and ours.ks_distance is not None:
        if abs(theirs.ks_distance - ours.ks_distance) <= TIE:
            return Verdict(False, "two tails have the same distance; each side took another")
        if theirs.xmin >= spectrum.eigs[-2] * (1 - TIE):
            return Verdict(False, "it took one of the last two eigenvalues as the tail")
    return Verdict(False, theirs.problem)


def _agree(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return False
    return abs(first - second) <= TOLERANCE * abs(first)


@contextmanager
def _asking() -> Iterator[Callable[[np.ndarray[Any, Any], ESD], dict[str, Answer]]]:
    """Give a function that asks the child process about one matrix."""
    worker = str(Path(__file__).with_name("crosscheck_worker.py"))
    with (
        tempfile.TemporaryDirectory(prefix="alphalloc-crosscheck-") as folder,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
    ):
        weight_file, eigs_file = Path(folder) / "weight.npy", Path(folder) / "eigs.npy"

        def ask(weight: np.ndarray[Any, Any], spectrum: ESD) -> dict[str, Answer]:
            assert child.stdin is not None and child.stdout is not None  # noqa: PT018  (pipes were asked for)
            np.save(weight_file, weight)
            np.save(eigs_file, spectrum.eigs)
            try:
                child.stdin.write(json.dumps({"weight": str(weight_file), "eigs": str(eigs_file)}) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise AnalysisError(f"the crosscheck process died: {_last_line(errors)}")
            return {name: _answer(value) for name, value in json.loads(line).items()}

        try:
            yield ask
        except BaseException:
            child.kill()
            raise


def _answer(value: dict[str, Any]) -> Answer:
    if not math.isfinite(value.get("alpha", math.nan)):
        return Answer(None, None, None, value.get("problem", f"alpha is {value.get('alpha')}"))
    return Answer(value.get("alpha"), value.get("xmin"), value.get("ks_distance"), value.get("problem"))


def _last_line(errors: Any) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return str(lines[-1]) if lines else "no message"
