"""train(): a recipe in, a run folder with the trained adapter and its record out.

The folder holds recipe.yaml, card.json and README.md, schedule.json, log.jsonl (one line a logged step), routing.jsonl
(one line a logged step and linear), routing.svg, ``adapter/`` (PEFT's own format) and ``checkpoints/``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphalloc.errors import MissingExtraError, OutputError, TrainingError
from alphalloc.training.recipe import Recipe
from alphalloc.training.run_folder import open_run
from alphalloc.training.sinks import check_sinks


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        folder: the run's folder; ``folder / "adapter"`` is what PEFT loads.
        steps: optimizer steps done in all.
        train_loss: mean loss of the last logged steps.
        eval: metrics of the evaluation at the end, such as ``eval_loss``; empty without evaluation examples.
        seconds: of training, those before a resume included; without loading and evaluating.
        cpu_seconds: processor time of this process's training, since a resume.
        peak_memory: bytes, see ``memory.peak_bytes``.
        parameters: trainable ones.
        schedule_id: of the schedule the adapter was made from.
        resumed_from: the step it was resumed at; None for a run from the start.
        warnings: what the user should know.
    """

    folder: Path
    steps: int
    train_loss: float | None
    eval: dict[str, float]
    seconds: float
    cpu_seconds: float
    peak_memory: int
    parameters: int
    schedule_id: str
    resumed_from: int | None = None
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "folder": str(self.folder), "warnings": list(self.warnings)}


def train(recipe: Recipe, *, resume: bool = False, progress: Any = None) -> TrainResult:
    """Train what ``recipe`` says and return the result.

    Args:
        recipe: see :class:`~alphalloc.training.recipe.Recipe`.
        resume: go on at the newest complete checkpoint in ``recipe.output``, bit for bit as if never stopped; start if
            there is none; return the recorded result if the run is finished.
        progress: called with a :class:`~alphalloc.training.callbacks.TrainProgress` at every step.

    Raises:
        RecipeError, DatasetError: as reading them does.
        TrainingError: the schedule is for another depth, the folder holds another run, the loss is no number, or memory
            ran out.
        CheckpointError, AdapterError, AllocationError, DocumentError: model, adapter and schedule do not fit.
        OutputError: the disk refused; the message names the last complete checkpoint.
        MissingExtraError: a library is not installed.
    """
    folder = open_run(recipe, resume=resume)
    if folder.finished is not None:
        return recorded(folder.path, folder.finished)
    _require_libraries()
    check_sinks(recipe.run.report_to)
    _require_matplotlib(recipe)
    with _quiet_libraries():
        from alphalloc.training.steps import Run

        run = Run.prepare(recipe, folder, progress=progress)
        with _disk_and_memory(folder.checkpoints, recipe):
            return run.train()


def recorded(folder: Path, card: dict[str, Any]) -> TrainResult:
    """Return the result that the card of a finished run holds."""
    result = card.get("result")
    if not isinstance(result, dict):
        raise TrainingError(f"{folder}: the run is not finished; resume it")
    known: dict[str, Any] = {name: result.get(name) for name in TrainResult.__dataclass_fields__}
    known |= {"folder": folder, "warnings": tuple(result.get("warnings") or ())}
    return TrainResult(**known)


def load_trained(folder: str | Path, *, dtype: str | None = None) -> tuple[Any, Any]:
    """Return (model with the trained adapter, tokenizer) of a finished run, in evaluation mode.

    It is on CUDA where there is one, unless the run's recipe says ``cpu``. Raises TrainingError when there is no
    trained adapter, AdapterError when it cannot be read or the base model is not the one it was trained on.
    """
    _require_libraries()
    with _quiet_libraries():
        from alphalloc.training.steps import load_run

        return load_run(Path(folder), dtype)


def _require_libraries() -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError(f"training needs {exc.name}: pip install 'alphalloc[train]'") from exc


def _require_matplotlib(recipe: Recipe) -> None:
    """Before the training, not after it; plain LoRA routes nothing that could be drawn."""
    if not recipe.run.picture or recipe.adapter.method != "moe":
        return
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError as exc:
        raise MissingExtraError(
            "run.picture needs matplotlib: pip install 'alphalloc[train]', or set run.picture to false"
        ) from exc


@contextlib.contextmanager
def _disk_and_memory(checkpoints: Path, recipe: Recipe) -> Iterator[None]:
    """Foreign errors of a full disk and of full memory, as ours."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise OutputError(f"{recipe.output}: cannot be written: {exc}. {_last(checkpoints)}") from exc
    except torch.OutOfMemoryError as exc:
        raise TrainingError(_memory_message(recipe, exc)) from exc
    except RuntimeError as exc:
        text = str(exc)
        if "PytorchStreamWriter" in text or "No space left" in text:
            raise OutputError(f"{recipe.output}: cannot be written: {text}. {_last(checkpoints)}") from exc
        if "not enough memory" in text or "can't allocate memory" in text:
            raise TrainingError(_memory_message(recipe, exc)) from exc
        raise


def _last(checkpoints: Path) -> str:
    from alphalloc.training.checkpoints import complete_checkpoints

    found = complete_checkpoints(checkpoints)
    if not found:
        return "There is no complete checkpoint yet: start again once there is room"
    return f"The last complete checkpoint is {found[-1].folder}: resume once there is room"


def _memory_message(recipe: Recipe, exc: Exception) -> str:
    micro = recipe.optim.micro_batch_size or recipe.optim.batch_size
    return (
        f"out of memory with {micro} examples a forward of up to {recipe.data.cutoff} tokens: lower "
        f"optim.micro_batch_size or data.cutoff, or set optim.gradient_checkpointing ({str(exc).splitlines()[0]})"
    )


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """No progress bars and chatter of the libraries beside our own."""
    import transformers

    log: Any = transformers.utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # What two of them say to each other about names of the next version.
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*is deprecated and will be removed.*")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
