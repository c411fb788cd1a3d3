"""The run card: what was trained, with what and on what, as card.json for programs and README.md for people."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alphalloc.documents import package_version, parse_document, pretty_json, write_atomic
from alphalloc.errors import DocumentError, TrainingError
from alphalloc.training.adapters import ParameterTable

KIND = "TrainingRun"
SCHEMA_VERSION = "1.0"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


def new_card(**parts: Any) -> dict[str, Any]:
    """Return a card with the versions and the commit of this program beside ``parts``."""
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "versions": {"alphalloc": package_version(), "python": platform.python_version(), **_versions()},
        "commit": source_commit(),
        **parts,
    }


def read_card(run: Path) -> dict[str, Any] | None:
    """Return the card of a run folder, None where there is none. Raises TrainingError when it is not one."""
    path = run / "card.json"
    if not path.exists():
        return None
    try:
        return parse_document(path.read_text(encoding="utf-8"), kind=KIND, major=1, where=str(path))
    except (OSError, ValueError, DocumentError) as exc:
        raise TrainingError(f"{path}: expected the card of a training run: {exc}") from exc


def write_card(run: Path, card: Mapping[str, Any]) -> None:
    """Write card.json and README.md, each whole or not at all."""
    write_atomic(run / "card.json", pretty_json(json.loads(json.dumps(card))))
    write_atomic(run / "README.md", card_text(card))


def table_document(table: ParameterTable) -> dict[str, Any]:
    """Return a parameter table as plain JSON values."""
    return {"trainable": table.trainable, "base": table.base, "layers": [asdict(row) for row in table.layers]}


def card_text(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    recipe, parameters = card["recipe"], card["parameters"]
    lines = [
        f"# {recipe['adapter']['method']} adapter on {card['model']['id']}",
        "",
        f"Status: {card['status']}. Made by alphalloc {card['versions']['alphalloc']}; recipe.yaml makes it again.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _facts(card)),
        *(f"| {name} | {_number(value)} |" for name, value in _result_numbers(card).items()),
        "",
        "| layer | experts | top_k | rank | trainable parameters |",
        "| --- | ---: | ---: | --- | ---: |",
        *(_row(row) for row in parameters["layers"]),
        f"| all | | | | {parameters['trainable']:,} |",
        "",
        *(f"- Warning: {text}" for text in card.get("warnings", ())),
    ]
    return "\n".join(lines).rstrip() + "\n"


def source_commit() -> str | None:
    """Return the commit of the checkout this package runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607  (the user's own git, wherever it is)
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _facts(card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    model, data = card["model"], card["data"]
    facts = [
        ("base model", f"{model['id']}, fingerprint `{model['fingerprint']}`"),
        ("schedule", f"`{card['schedule']['id']}`, {sum(card['schedule']['num_experts'])} experts"),
        ("preset", card["recipe"]["preset"] or "none"),
        ("training data", _data_text(data["train"])),
    ]
    if data.get("eval"):
        facts.append(("evaluation data", _data_text(data["eval"])))
    facts.append(("versions", ", ".join(f"{name} {number}" for name, number in card["versions"].items())))
    if card["commit"]:
        facts.append(("commit", f"`{card['commit']}`"))
    return facts


def _result_numbers(card: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a card's result by name, those of its last evaluation among them."""
    result = dict(card.get("result") or {})
    result |= result.pop("eval", None) or {}
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


def _data_text(data: Mapping[str, Any]) -> str:
    return (
        f"{data['source']}: {data['examples']} examples, {data['overlong']} over the cutoff, {data['dropped']} left "
        f"out, {data['tokens']} tokens, SHA-256 `{data['sha256'][:16]}`"
    )


def _row(row: Mapping[str, Any]) -> str:
    experts = "plain" if row["num_experts"] is None else row["num_experts"]
    ranks = ", ".join(map(str, row["ranks"]))
    return f"| {row['layer']} | {experts} | {row['top_k'] or ''} | {ranks} | {row['parameters']:,} |"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
