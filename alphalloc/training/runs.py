"""The single runs of a comparison on disk: trained once, evaluated once, found again, recognised when broken."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alphalloc.documents import content_id, package_version, pretty_json, write_atomic
from alphalloc.errors import AdapterError, TrainingError
from alphalloc.training.comparison_recipe import TestSettings
from alphalloc.training.data import Example, examples_digest
from alphalloc.training.evaluate import Evaluation, evaluate
from alphalloc.training.recipe import Recipe

ADAPTER = Path("adapter", "adapter_model.safetensors")


def ensure_trained(recipe: Recipe, run: Path, *, frozen: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the record of the finished run in ``run``, after training it if it is not finished.

    A run is finished when finished.json names this recipe and the digest of the adapter beside it. One that was
    stopped goes on at its last complete checkpoint; one whose adapter was changed afterwards is trained anew.

    Raises TrainingError when the run is of another recipe, or unfinished although the test is open (``frozen``).
    """
    with locked(run):
        return _ensure_trained(recipe, run, frozen, say)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Wait until no other process trains this run: several may work on one comparison at a time."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.with_name(run.name + ".lock"), "w", encoding="utf-8") as stream:
        try:
            import fcntl
        except ImportError:  # not a Unix: one process at a time is up to the user
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _ensure_trained(recipe: Recipe, run: Path, frozen: bool, say: Callable[[str], None]) -> dict[str, Any]:
    identity = _identity(recipe)
    record = read_record(run / "finished.json")
    if record is not None and record["recipe"] != identity:
        raise TrainingError(
            f"{run}: expected a run of this recipe ({identity}), it was trained by another ({record['recipe']}); "
            "choose another output folder"
        )
    if record is not None and record["adapter"] == adapter_digest(run):
        return record
    if frozen:
        raise TrainingError(
            f"{run}: there is no finished run here and the test split is open already (test.json): whatever is trained "
            "now could have been chosen by its result; choose another output folder"
        )
    if record is not None:
        say(f"{run}: the adapter is not the one that was trained here; trained anew")
        shutil.rmtree(run)
    from alphalloc.training.train import train

    say(f"{run}: training")
    result = train(recipe, resume=True)
    record = {
        "recipe": identity,
        "adapter": adapter_digest(run),
        "parameters": result.parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "peak_memory": result.peak_memory,
        "train_loss": result.train_loss,
    }
    write_atomic(run / "finished.json", pretty_json(record))
    say(f"{run}: {result.steps} steps in {result.seconds:.0f} s, loss {result.train_loss:.3f}")
    gc.collect()  # a model and its optimiser, before the next one is loaded
    return record


def ensure_evaluated(
    recipe: Recipe,
    run: Path,
    what: str,
    examples: Sequence[Example],
    settings: TestSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the evaluation in ``WHAT.json`` of the run, after making it if it is not there."""
    return _ensure(run / f"{what}.json", recipe, run / "adapter", examples, settings, say)


def ensure_untrained(
    recipe: Recipe, folder: Path, examples: Sequence[Example], settings: TestSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return accuracy and interval of the model without an adapter, kept in untrained.json."""
    found = _ensure(folder / "untrained.json", recipe, None, examples, settings, say)
    return {key: found[key] for key in ("accuracy", "low", "high", "correct", "total")}


def open_test(path: Path, digest: str, examples: int, adapters: Mapping[str, str | None]) -> None:
    """Record in ``path`` that the test split is opened now, for these adapters; they cannot change any more.

    Raises TrainingError when it was opened before for other adapters or other examples.
    """
    record = read_record(path)
    if record is None:
        opened = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomic(
            path, pretty_json({"opened_at": opened, "sha256": digest, "examples": examples, "adapters": dict(adapters)})
        )
        return
    known = record["adapters"]
    changed = sorted(name for name, sha in adapters.items() if known.get(name) != sha)
    if record["sha256"] != digest or changed:
        what = f"the runs {', '.join(changed)} are not those it was opened for" if changed else "it was another split"
        raise TrainingError(
            f"{path}: the test split was opened at {record['opened_at']} and {what}; a test is looked at once: choose "
            "another output folder"
        )


def adapter_digest(run: Path) -> str | None:
    """Return the SHA-256 of the run's adapter; None without one."""
    try:
        with open(run / ADAPTER, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON object at ``path``; None when there is none or it was not written by this program."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished_record(run: Path) -> dict[str, Any]:
    """Return what finished.json of a run holds. Raises TrainingError when the run is not finished."""
    record = read_record(run / "finished.json")
    if record is None:
        raise TrainingError(f"{run}: expected a finished run, its finished.json is missing; train it again")
    return record


def environment() -> dict[str, Any]:
    """Return what the figures depend on: machine, threads and library versions."""
    import peft
    import torch
    import transformers

    return {
        "alphalloc": package_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _ensure(
    path: Path,
    recipe: Recipe,
    adapter: Path | None,
    examples: Sequence[Example],
    settings: TestSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    digest = examples_digest(examples)
    record = read_record(path)
    if record is not None and record.get("examples_sha256") == digest:
        return record
    say(f"{path}: evaluating {len(examples)} examples")
    found = _evaluated(recipe, adapter, examples, settings)
    record = {**found.plain(), "examples_sha256": digest}
    write_atomic(path, pretty_json(record))
    say(f"{path}: accuracy {found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}]")
    return record


def _evaluated(recipe: Recipe, adapter: Path | None, examples: Sequence[Example], settings: TestSettings) -> Evaluation:
    model, tokenizer = load_run(recipe, adapter)
    return evaluate(
        model,
        tokenizer,
        examples,
        mode=settings.mode,
        template=recipe.data.template,
        options=settings.options,
        normalisation=settings.normalisation,
        pattern=settings.pattern,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )


def load_run(recipe: Recipe, adapter: Path | None) -> tuple[Any, Any]:
    """Return the recipe's model, with the adapter in a folder if one is given, and its tokenizer."""
    from alphalloc.training.trainer import base_dtype

    return load_model_with(
        recipe.model, adapter, revision=recipe.revision, dtype=base_dtype(recipe), cpu=recipe.run.device == "cpu"
    )


def load_model_with(
    source: str, adapter: Path | None, *, revision: str | None = None, dtype: str | None = None, cpu: bool = False
) -> tuple[Any, Any]:
    """Return a model with the adapter in a folder (None: as it is) on CUDA where there is one, and its tokenizer.

    ``dtype`` None: bfloat16 on CUDA, else float32. Raises AdapterError when the folder holds no adapter for it.
    """
    import peft
    import torch

    import alphalloc.peft  # noqa: F401  # registers MoE-LoRA
    from alphalloc.training.models import find_model, load_model, load_tokenizer

    base = find_model(source, revision)
    cuda = not cpu and torch.cuda.is_available()
    model = load_model(base, dtype=dtype or ("bfloat16" if cuda else "float32"))
    if adapter is not None:
        try:
            model = peft.PeftModel.from_pretrained(model, str(adapter))
        except (OSError, ValueError, RuntimeError) as exc:
            raise AdapterError(f"{adapter}: expected an adapter for {source}: {exc}") from exc
    return model.to("cuda" if cuda else "cpu").eval(), load_tokenizer(base)


def _identity(recipe: Recipe) -> str:
    """What makes two runs the same: every setting but the folder, and the schedule's content instead of its path.

    Settings at their defaults are left out, so that a release with more of them knows its predecessor's runs.
    """
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values.pop("output", None)
    if recipe.schedule.file is not None:
        text = Path(recipe.schedule.file).read_text(encoding="utf-8")
        values["schedule"] = json.loads(text)["id"]
    return content_id("run_", values)
