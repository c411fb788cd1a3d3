"""Where numbers go beside the JSONL files: TensorBoard and Weights & Biases, each only when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from alphalloc.documents import write_atomic
from alphalloc.errors import MissingExtraError


class Sink(Protocol):
    """Takes numbers by name at a step."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder``; what others there say of the steps after ``begin`` is hidden."""

    def __init__(self, folder: Path, begin: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=begin + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write each number as a scalar."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; project, mode and key come from its own environment variables.

    Its id is kept in ``wandb-id`` of the run's folder, so that a resumed run goes on in the same curves. It ignores the
    steps that it has already; they were the same, since resuming is exact.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        self.run: Any = wandb.init(
            dir=str(folder), name=folder.name, config=dict(config), id=_kept_id(folder / "wandb-id"), resume="allow"
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log all numbers at once."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def check_sinks(names: Sequence[str]) -> None:
    """Raise MissingExtraError if the library behind one of ``names`` is not installed."""
    for name in names:
        try:
            if name == "tensorboard":
                import torch.utils.tensorboard  # noqa: F401  (fails without the tensorboard package)
            else:
                import wandb  # noqa: F401
        except ImportError as exc:
            extra = "'alphalloc[train]'" if name == "tensorboard" else name
            raise MissingExtraError(
                f"run.report_to asks for {name}, which is not installed: pip install {extra}"
            ) from exc


def open_sinks(names: Sequence[str], folder: Path, config: Mapping[str, Any], *, begin: int = 0) -> list[Sink]:
    """Return the sinks of these names, writing below ``folder``; ``begin`` is the step that is resumed at."""
    made: list[Sink] = []
    for name in names:
        made.append(TensorBoard(folder / "tensorboard", begin) if name == "tensorboard" else Wandb(folder, config))
    return made


def _kept_id(path: Path) -> str:
    """Return the id in ``path``, a new random one where there is none yet."""
    if not path.exists():
        write_atomic(path, uuid4().hex[:16] + "\n")
    return path.read_text(encoding="utf-8").strip()
