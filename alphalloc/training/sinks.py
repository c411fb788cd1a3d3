"""Where numbers go beside the JSONL files: TensorBoard and Weights & Biases, each only when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alphalloc.errors import MissingExtraError


class Sink(Protocol):
    """Takes numbers by name at a step."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write each number as a scalar."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; project, mode and key come from its own environment variables."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        self.run: Any = wandb.init(dir=str(folder), name=folder.name, config=dict(config), resume="allow")

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


def open_sinks(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Return the sinks of these names, writing below ``folder``."""
    made: list[Sink] = []
    for name in names:
        made.append(TensorBoard(folder / "tensorboard") if name == "tensorboard" else Wandb(folder, config))
    return made
