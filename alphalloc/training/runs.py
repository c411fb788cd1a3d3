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
from alphalloc.errors import TrainingError
from alphalloc.training.card import read_card
from alphalloc.training.comparison_recipe import TestSettings
from alphalloc.training.data import Example, examples_digest
from alphalloc.training.evaluate import Evaluation, evaluate
from alphalloc.training.recipe import Recipe
from alphalloc.training.tokens import Template

ADAPTER = Path("adapter", "adapter_model.safetensors")


def ensure_trained(recipe: Recipe, run: Path, *, frozen: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the record of the finished run in ``run``, after training it if it is not finished.

    A run is finished when finished.json names this recipe, base model and training examples, and the digest of the
    adapter beside it. One that was stopped goes on at its last complete checkpoint; one whose adapter was changed
    afterwards is trained anew.

    Raises TrainingError when the run is of another recipe, model or data, or unfinished although the test is open
    (``frozen``).
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
    inputs = _inputs(recipe)
    for what, now in inputs.items():
        before = now if record is None else record.get(what, now)  # runs of before these were recorded: not known
        if before != now:
            raise TrainingError(
                f"{run}: expected a run on {what.replace('_', ' ')} {now}, it was trained on {before}; restore it, or "
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
        **inputs,
        "adapter": adapter_digest(run),
        "parameters": result.parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu_seconds": None if result.resumed_from is not None else result.cpu_seconds,
        "peak_memory": result.peak_memory,
        "train_loss": result.train_loss,
    }
    write_atomic(run / "finished.json", pretty_json(record))
    loss = "not logged" if result.train_loss is None else f"{result.train_loss:.3f}"
    say(f"{run}: {result.steps} steps in {result.seconds:.0f} s, loss {loss}")
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
    """Return the evaluation in ``WHAT.json`` of the run, after making it if it is not there.

    Raises TrainingError when it is there with other settings.
    """
    return _ensure(run / f"{what}.json", recipe, run, run / "adapter", examples, settings, say)


def ensure_untrained(
    recipe: Recipe,
    run: Path,
    folder: Path,
    examples: Sequence[Example],
    settings: TestSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return accuracy and interval of the model without an adapter, asked as ``run`` is, kept in untrained.json."""
    found = _ensure(folder / "untrained.json", recipe, run, None, examples, settings, say)
    return {key: found[key] for key in ("accuracy", "low", "high", "correct", "total")}


def open_test(
    path: Path, digest: str, examples: int, adapters: Mapping[str, str | None], settings: TestSettings
) -> None:
    """Record in ``path`` that the test split is opened now, for these adapters and settings; they stay.

    Raises TrainingError when it was opened before for other adapters, examples or settings.
    """
    record = read_record(path)
    if record is None:
        opened = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"opened_at": opened, "sha256": digest, "examples": examples, "adapters": dict(adapters)}
        write_atomic(path, pretty_json({**record, "settings": _asked(settings)}))
        return
    _check_same_settings(path, record, settings)
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
    run: Path,
    adapter: Path | None,
    examples: Sequence[Example],
    settings: TestSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    digest = examples_digest(examples)
    record = read_record(path)
    if record is not None:
        _check_same_settings(path, record, settings)
        if record.get("examples_sha256") == digest:
            return record
    say(f"{path}: evaluating {len(examples)} examples")
    found = _evaluated(recipe, run, adapter, examples, settings)
    record = {**found.plain(), "examples_sha256": digest, "settings": _asked(settings)}
    write_atomic(path, pretty_json(record))
    say(f"{path}: accuracy {found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}]")
    return record


def _asked(settings: TestSettings) -> dict[str, Any]:
    """The settings that an answer depends on; the examples have a digest of their own."""
    return settings.model_dump(mode="json", exclude={"data", "split", "name", "limit", "overlap", "batch_size"})


def _check_same_settings(path: Path, record: Mapping[str, Any], settings: TestSettings) -> None:
    """Raise TrainingError when a record was made with other settings, as far as it says them.

    Evaluations of before they were recorded have ``mode`` and ``normalisation`` alone, test.json none.
    """
    now = _asked(settings)
    before = record.get("settings")
    if not isinstance(before, Mapping):
        before = {key: record[key] for key in ("mode", "normalisation") if record.get(key) is not None}
    changed = [key for key, value in before.items() if now.get(key) != value]
    if changed:
        key = changed[0]
        raise TrainingError(
            f"{path}: made with test.{key} {before[key]!r}, the recipe has {now.get(key)!r}; restore it, or choose "
            "another output folder"
        )


def trained_template(recipe: Recipe, run: Path) -> Template:
    """Return how a run's prompts were worded: as its card says, else (cards of before they did) as the recipe asks."""
    card = read_card(run)
    found: Template = (card or {}).get("data", {}).get("template") or recipe.data.template
    return found


def _evaluated(
    recipe: Recipe, run: Path, adapter: Path | None, examples: Sequence[Example], settings: TestSettings
) -> Evaluation:
    model, tokenizer = load_run(recipe, adapter)
    return evaluate(
        model,
        tokenizer,
        examples,
        mode=settings.mode,
        template=trained_template(recipe, run),
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
    import torch

    from alphalloc.training.models import find_model, load_adapted

    cuda = not cpu and torch.cuda.is_available()
    dtype = dtype or ("bfloat16" if cuda else "float32")
    return load_adapted(find_model(source, revision), adapter, dtype=dtype, cpu=cpu)


def _inputs(recipe: Recipe) -> dict[str, str | None]:
    """What a recipe names and does not hold: the base model's fingerprint and the digest of the training examples."""
    from alphalloc.training.models import find_model
    from alphalloc.training.steps import read_data

    return {
        "base_model": find_model(recipe.model, recipe.revision).reference.fingerprint,
        "training_data": examples_digest(read_data(recipe.data, recipe.seed)[0]),
    }


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
