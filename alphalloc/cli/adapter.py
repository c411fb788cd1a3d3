"""``alphalloc adapter``: ways out of and into a MoE-LoRA adapter: export-static, dump-experts, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alphalloc.errors import AdapterError

app = typer.Typer(
    name="adapter",
    help="Turn a MoE-LoRA adapter into plain LoRA folders, or make an untouched one.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or hub id of the adapter.")]
Folder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Write the result into this new folder.")
]
Base = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Base model, if not the one it names.")]


@app.command("export-static")
def export_static(
    adapter: Adapter,
    text: Annotated[Path, typer.Option("--text", help="Calibration text; one sample a line, or a JSONL with `text`.")],
    folder: Folder,
    base: Base = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 4,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens a sample at most.")] = 512,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples read at most.")] = 256,
) -> None:
    """Fold the mean gate into a plain LoRA and print what that loses: perplexity and logit KL."""
    _refuse_existing(folder)
    samples = _samples(text)[:max_samples]
    from transformers import AutoTokenizer

    from alphalloc.peft.export_static import export_static as export
    from alphalloc.peft.export_static import text_batches

    model = _load(adapter, base)
    name = base or model.peft_config["default"].base_model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as exc:
        raise AdapterError(f"expected a tokenizer with the base model {name!r}: {exc}") from exc
    export(model, text_batches(tokenizer, samples, batch_size=batch_size, max_length=max_length), folder)


@app.command("dump-experts")
def dump_experts(adapter: Adapter, folder: Folder, base: Base = None) -> None:
    """Write each expert as a plain LoRA folder: expert_0, expert_1, ..."""
    _refuse_existing(folder)
    from alphalloc.peft.dump_experts import dump_experts as dump

    for path in dump(_load(adapter, base), folder):
        typer.echo(path)


@app.command("init")
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of the base model.")],
    schedule: Annotated[
        Path, typer.Option("--schedule", help="The schedule.json that says how many experts go where.")
    ],
    folder: Folder,
    r: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of each expert.")] = 8,
    lora_alpha: Annotated[float, typer.Option(help="LoRA's factor; the scale is lora_alpha / rank.")] = 16,
    dropout: Annotated[float, typer.Option(help="Dropout on the experts' input.")] = 0.0,
    targets: Annotated[str | None, typer.Option(help="Target modules, comma separated, or all-linear.")] = None,
    preset: Annotated[str | None, typer.Option(help="Losses of a paper: alphalora, mola or moelora.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
) -> None:
    """Save an untouched adapter, for trainers that only take the path of one."""
    _refuse_existing(folder)
    from alphalloc.peft import MoELoraConfig
    from alphalloc.peft.init_adapter import init_adapter

    names: Any = None if targets is None else "all-linear" if targets == "all-linear" else targets.split(",")
    config = MoELoraConfig.from_schedule(
        schedule, r=r, lora_alpha=lora_alpha, target_modules=names, preset=preset, lora_dropout=dropout
    )
    init_adapter(model, config, folder, seed=seed)
    typer.echo(folder)


def _load(adapter: str, base: str | None) -> Any:
    """The base model with the adapter on it."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    import alphalloc.peft  # noqa: F401  (registers the method)

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (ValueError, KeyError) as exc:
        raise AdapterError(f"expected an adapter folder or hub id, got {adapter!r}: {exc}") from exc
    name = base or config.base_model_name_or_path
    if not name:
        raise AdapterError(f"{adapter!r} does not name its base model; give it with --base")
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as exc:
        raise AdapterError(f"the base model {name!r} cannot be loaded: {exc}; give another with --base") from exc
    return PeftModel.from_pretrained(model, adapter)


def _samples(path: Path) -> list[str]:
    import json

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix == ".jsonl":
            lines = [str(json.loads(line)["text"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise AdapterError(f"expected UTF-8 text, or JSONL with a `text` in every line, in {path}: {exc}") from exc
    if not lines:
        raise AdapterError(f"{path} has no text to calibrate on")
    return lines


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} exists and is not an empty folder; choose another with --output")
