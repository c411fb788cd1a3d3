"""A MoE-LoRA adapter folded into one plain LoRA by its mean gate: servable anywhere, and not the same function.

The gate of expert e is replaced by its mean over calibration tokens, g_e. Then the mixture is one LoRA of rank E r:

    sum_e g_e B_e A_e x = [g_1 B_1 ... g_E B_E] [A_1; ...; A_E] x

What that costs is measured every time, on text the mean was not taken from where there is enough of it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphalloc.documents import write_atomic
from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.layer import MoELoraLayer
from alphalloc.peft.plain_lora import LoraPair, write_plain_lora
from alphalloc.peft.tuner import named_adapters

Batch = Mapping[str, Tensor]
HELD_OUT_EVERY = 5  # chosen here: a fifth of the batches measures, the rest makes the mean


@dataclass(frozen=True)
class StaticExport:
    """What ``export_static`` measured. Perplexities and the divergence are over predicted tokens, in natural units.

    ``mean_kl`` is the mean over tokens of KL(adapter's next-token distribution || static one's) in nats;
    ``measured_on`` is ``"held-out text"``, or ``"calibration text"`` when there was a single batch.
    """

    folder: str
    perplexity_base: float
    perplexity_adapter: float
    perplexity_static: float
    mean_kl: float
    measured_on: str
    measured_tokens: int
    calibration_tokens: int

    def __str__(self) -> str:
        ratio = self.perplexity_static / self.perplexity_adapter
        return (
            f"static LoRA in {self.folder}: perplexity {self.perplexity_static:.4f} against the adapter's "
            f"{self.perplexity_adapter:.4f} (x{ratio:.4f}; base model {self.perplexity_base:.4f}), "
            f"KL(adapter || static) {self.mean_kl:.6f} nats a token, measured on {self.measured_tokens} tokens of "
            f"{self.measured_on}; gates averaged over {self.calibration_tokens} tokens"
        )


def text_batches(tokenizer: Any, texts: Sequence[str], *, batch_size: int = 4, max_length: int = 512) -> list[Batch]:
    """The texts as padded batches of ``input_ids`` and ``attention_mask``.

    Raises:
        AdapterError: no text with at least two tokens.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    long_enough = [text for text in texts if len(tokenizer(text)["input_ids"]) > 1]
    if not long_enough:
        raise AdapterError("the calibration text is empty: give texts of at least two tokens each")
    batches: list[Batch] = []
    for start in range(0, len(long_enough), batch_size):
        encoded = tokenizer(
            long_enough[start : start + batch_size],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_length,
        )
        batches.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
    return batches


@torch.no_grad()
def export_static(
    model: nn.Module, batches: Sequence[Batch], folder: str | Path, *, adapter_name: str = "default"
) -> StaticExport:
    """Write ``folder``, a plain LoRA stock PEFT loads, and return (and print to stderr) what it loses.

    Args:
        model: a causal language model with the adapter, as ``get_peft_model`` or ``PeftModel.from_pretrained`` made it.
        batches: dicts of ``input_ids`` and ``attention_mask``, see ``text_batches``.
        folder: where to write; the measured gap is also in its ``static_export.json`` and README.md.
        adapter_name: which adapter.

    Raises:
        AdapterError: no such adapter, no batch, or a model that returns no logits.
    """
    adapters = dict(named_adapters(model, adapter_name))
    if not adapters:
        raise AdapterError(f"the model has no MoE-LoRA adapter named {adapter_name!r}")
    if not batches:
        raise AdapterError("the calibration text is empty: give at least one batch")
    held_out = list(batches[::HELD_OUT_EVERY]) if len(batches) > 1 else list(batches)
    chosen = [b for i, b in enumerate(batches) if i % HELD_OUT_EVERY] if len(batches) > 1 else list(batches)
    was_training = model.training
    model.eval()
    gates = mean_gates(model, chosen, adapters)
    pairs = {path: _fold(adapter, gates[path]) for path, adapter in adapters.items()}
    measured = _measure(model, held_out, adapter_name, pairs)
    model.train(was_training)
    target = Path(folder)
    config = cast("MoELoraConfig", model.peft_config[adapter_name])  # type: ignore[index]
    write_plain_lora(target, pairs, model, config, adapter_name)
    report = StaticExport(
        folder=str(target),
        **measured,
        measured_on="held-out text" if len(batches) > 1 else "calibration text",
        calibration_tokens=int(sum(_real(batch).sum() for batch in chosen)),
    )
    write_atomic(target / "static_export.json", json.dumps(asdict(report), indent=2, sort_keys=True) + "\n")
    write_atomic(target / "README.md", _README.format(report=report))
    print(report, file=sys.stderr)
    return report


_README = """---
library_name: peft
---

# A static approximation of a MoE-LoRA adapter

Each expert's gate was replaced by its mean over calibration text, so this is a plain LoRA and not the trained function:

{report}
"""


def mean_gates(model: nn.Module, batches: Sequence[Batch], adapters: Mapping[str, MoELora]) -> dict[str, Tensor]:
    """The mean gate of each adapter over the real tokens of ``batches``: (E,) float64, 1 for a single expert."""
    sums = {path: torch.zeros(a.num_experts, dtype=torch.float64) for path, a in adapters.items()}
    counts = dict.fromkeys(adapters, 0)
    mask: list[Tensor] = []

    def watch(path: str) -> Callable[..., None]:
        def before(adapter: MoELora, arguments: tuple[Tensor, ...]) -> None:
            x_TD = arguments[0].reshape(-1, adapter.in_features)
            keep = mask[0].reshape(-1).bool().to(x_TD.device)
            gate_TE = adapter.route(x_TD[keep] if len(keep) == len(x_TD) else x_TD).gate_TE
            sums[path] += gate_TE.double().sum(0).cpu()
            counts[path] += len(gate_TE)

        return before

    handles = [a.register_forward_pre_hook(watch(path)) for path, a in adapters.items() if a.num_experts > 1]
    for batch in batches:
        mask[:] = [_real(batch)]
        _logits(model, batch)
    for handle in handles:
        handle.remove()
    return {path: sums[path] / counts[path] if counts[path] else torch.ones(1).double() for path in adapters}


def _fold(adapter: MoELora, gate_E: Tensor) -> LoraPair:
    b_OR = adapter.experts_b.weight
    factor_R = gate_E.to(b_OR).repeat_interleave(adapter.expert_rank)
    return LoraPair(adapter.experts_a.weight, b_OR * factor_R, adapter.scaling)


def _measure(
    model: nn.Module, batches: Sequence[Batch], adapter_name: str, pairs: Mapping[str, LoraPair]
) -> dict[str, Any]:
    loss = {"base": 0.0, "adapter": 0.0, "static": 0.0}
    divergence, tokens = 0.0, 0
    for batch in batches:
        with model.disable_adapter():  # type: ignore[operator]
            base = _logits(model, batch)
        logits = {"base": base, "adapter": _logits(model, batch)}
        with _static(model, adapter_name, pairs):
            logits["static"] = _logits(model, batch)
        keep = _real(batch)[:, 1:].bool().reshape(-1).to(base.device)
        target = batch["input_ids"][:, 1:].reshape(-1).to(base.device)[keep]
        logp = {name: value[:, :-1].flatten(0, 1)[keep].double().log_softmax(-1) for name, value in logits.items()}
        for name, value in logp.items():
            loss[name] += float(functional.nll_loss(value, target, reduction="sum"))
        divergence += float((logp["adapter"].exp() * (logp["adapter"] - logp["static"])).sum())
        tokens += len(target)
    perplexity = {f"perplexity_{name}": math.exp(total / tokens) for name, total in loss.items()}
    return {**perplexity, "mean_kl": divergence / tokens, "measured_tokens": tokens}


@contextmanager
def _static(model: nn.Module, adapter_name: str, pairs: Mapping[str, LoraPair]) -> Iterator[None]:
    """The model with each adapter replaced by its folded form."""
    layers = [
        (path.removeprefix("base_model.model."), layer)
        for path, layer in model.named_modules()
        if isinstance(layer, MoELoraLayer) and adapter_name in layer.alphalloc_molora_adapters
    ]
    trained = [layer.alphalloc_molora_adapters[adapter_name] for _, layer in layers]
    for path, layer in layers:
        layer.alphalloc_molora_adapters[adapter_name] = _Folded(pairs[path])
    try:
        yield
    finally:
        for (_, layer), adapter in zip(layers, trained, strict=True):
            layer.alphalloc_molora_adapters[adapter_name] = adapter


class _Folded(nn.Module):
    def __init__(self, pair: LoraPair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        hidden = functional.linear(x.to(self.pair.a_RD.dtype), self.pair.a_RD)
        delta = functional.linear(hidden, self.pair.b_OR) * self.pair.scaling
        return (base_output + delta).to(base_output.dtype)


def _real(batch: Batch) -> Tensor:
    """1 at real tokens, 0 at padding; (batch, length)."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    logits = getattr(output, "logits", None)
    if logits is None or logits.dim() != 3:
        raise AdapterError("expected a causal language model that returns logits (batch, length, vocabulary)")
    return cast("Tensor", logits)
