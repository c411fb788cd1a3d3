"""The base model of a run: a transformers folder or hub id, or a GGUF file turned into such a folder once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphalloc.allocation import LayerRef, ModelRef
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import (
    AdapterError,
    CheckpointError,
    MissingExtraError,
    OutputError,
    TrainingError,
    UnsupportedCheckpointError,
)

CONVERSION = 2  # raise it when the folder made from a GGUF file changes


@dataclass(frozen=True)
class BaseModel:
    """Which model is trained, before its weights are read.

    Attributes:
        source: as the recipe names it; what an analysis reads.
        loads_from: what transformers loads: the same, or the folder a GGUF file was turned into.
        revision: the commit of a hub model, else None.
        reference: id, fingerprint and depth, as schedules carry them.
        layers: its blocks.
    """

    source: str
    loads_from: str
    revision: str | None
    reference: ModelRef
    layers: tuple[LayerRef, ...]


def find_model(source: str, revision: str | None = None, *, cache: Path | None = None) -> BaseModel:
    """Return what ``source`` is; a GGUF file is turned into a folder of the user's cache (or ``cache``) if it is new.

    Raises a CheckpointError when it cannot be read, MissingExtraError when a GGUF file needs the gguf package.
    """
    checkpoint = open_checkpoint(source, revision=revision)
    layers = tuple(dict.fromkeys(LayerRef(layer=m.layer, stack=m.stack) for m in checkpoint.matrices if m.layer >= 0))
    local = checkpoint.commit is None
    reference = ModelRef(
        id=Path(source).resolve().name if local else checkpoint.model_id,
        revision=revision,
        commit=checkpoint.commit,
        fingerprint=checkpoint.fingerprint,
        format=checkpoint.format,
        quantized=checkpoint.quantized,
        num_layers=len(layers),
    )
    path = Path(os.path.expanduser(source)) if local else None
    if path is not None and checkpoint.format == "gguf" and path.is_file():
        loads_from = str(gguf_folder(path, cache=cache))
    else:
        loads_from = source if path is None else str(path)
    return BaseModel(source, loads_from, checkpoint.commit, reference, layers)


def load_model(base: BaseModel, *, dtype: str = "float32") -> Any:
    """Return the causal language model with its weights in ``dtype``, on the CPU and in training mode as loaded.

    Raises UnsupportedCheckpointError when transformers cannot build a causal language model from it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            base.loads_from, revision=base.revision or "main", dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, ImportError, KeyError) as exc:
        raise UnsupportedCheckpointError(
            f"{base.source}: expected a causal language model that transformers can load: {exc}"
        ) from exc


def load_tokenizer(base: BaseModel) -> Any:
    """Return the model's tokenizer, with a padding token.

    Raises TrainingError when the model comes without one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.loads_from, revision=base.revision or "main")
    except Exception as exc:  # transformers, tokenizers and sentencepiece each raise their own
        raise TrainingError(f"{base.source}: expected a tokenizer beside the model: {exc}") from exc
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise TrainingError(f"{base.source}: the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_adapted(base: BaseModel, adapter: Path | None, *, dtype: str, cpu: bool = False) -> tuple[Any, Any]:
    """Return a model with the adapter in a folder (None: as it is), in evaluation mode, and its tokenizer.

    It is on CUDA where there is one, unless ``cpu``. Raises AdapterError when the folder holds no adapter for it.
    """
    import peft
    import torch
    from safetensors import SafetensorError

    import alphalloc.peft  # noqa: F401  # registers MoE-LoRA

    model = load_model(base, dtype=dtype)
    if adapter is not None:
        try:
            model = peft.PeftModel.from_pretrained(model, str(adapter))
        except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
            raise AdapterError(f"{adapter}: expected an adapter for {base.source}: {exc}") from exc
    return model.to("cpu" if cpu or not torch.cuda.is_available() else "cuda").eval(), load_tokenizer(base)


def gguf_folder(path: Path, *, cache: Path | None = None) -> Path:
    """Return the transformers folder with the dequantised float32 weights and the tokenizer of a GGUF file.

    It is made once, in ``models/`` of the user's cache folder, and found again by the file's name, size and time of
    change. Raises UnsupportedCheckpointError when transformers cannot read the file, MissingExtraError without gguf,
    OutputError when the cache cannot be written.
    """
    status = path.stat()
    key = hashlib.sha256(
        f"{CONVERSION}\n{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}".encode()
    ).hexdigest()[:16]
    root = _cache_root() if cache is None else cache
    target = root / "models" / f"{path.stem[:80]}-{key}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    except OSError as exc:
        raise OutputError(f"{target.parent}: the cache cannot be written: {exc.strerror or exc}") from exc
    try:
        _dequantise(path, folder)
        _publish(folder, target)
    except OSError as exc:
        raise OutputError(f"{target}: the dequantised model cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _cache_root() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("alphalloc"))


def _dequantise(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        read: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        quantised = read(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except ImportError as exc:
        raise MissingExtraError(f"{path}: GGUF files need the gguf package: pip install 'alphalloc[gguf]'") from exc
    except CheckpointError:
        raise
    except Exception as exc:  # a reader of a foreign format: anything may come out of it
        raise UnsupportedCheckpointError(f"{path}: transformers cannot read this GGUF file: {exc}") from exc
    # A model read from GGUF refuses to be saved; a fresh one of the same configuration does not.
    build: Callable[..., Any] = AutoModelForCausalLM.from_config
    if hasattr(quantised.config, "quantization_config"):  # the weights are float32 now; a Trainer would refuse them
        del quantised.config.quantization_config
    fresh = build(quantised.config)
    fresh.load_state_dict(quantised.state_dict())
    fresh.generation_config = quantised.generation_config
    fresh.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _publish(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():  # another process was first: its folder is as good
            raise
