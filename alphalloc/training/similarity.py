"""How alike the experts of a trained adapter are: cosines between their outputs, on real text, linear by linear."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphalloc.errors import AdapterError
from alphalloc.training.likelihood import TokenIds, pad_left, positions


@dataclass(frozen=True)
class ExpertSimilarity:
    """One linear with E experts of rank r, on T tokens; ``y_te = B_e A_e x_t``.

    Attributes:
        module: path of the linear in the base model.
        layer: its block.
        between: mean cosine of the outputs of two different experts for the same token, over tokens and pairs.
        between_absolute: the same of the cosine's absolute value: 0 only if the experts are orthogonal.
        within: mean cosine of one expert's outputs for two different tokens, over experts and pairs of tokens.
        tokens: T.
    """

    module: str
    layer: int
    between: float
    between_absolute: float
    within: float
    tokens: int


@torch.no_grad()
def expert_similarity(
    model: Any, prompts: Sequence[TokenIds], *, pad_id: int, batch_size: int = 16
) -> tuple[ExpertSimilarity, ...]:
    """Return the similarities of every linear with at least two experts, in the model's order.

    Args:
        model: a PeftModel with a MoE-LoRA adapter; it is put into evaluation mode.
        prompts: token ids of the texts.
        pad_id: any id; padding is masked and does not count.
        batch_size: texts of a forward pass.

    Raises AdapterError when there is no linear with two experts, or an expert's B is zero still (untrained).
    """
    from alphalloc.peft import named_adapters

    adapters = {path: a for path, a in named_adapters(model, "default") if a.num_experts > 1}
    if not adapters:
        raise AdapterError("expected an adapter with two experts or more in some linear, found none")
    model.eval()
    hidden: dict[str, list[Tensor]] = {path: [] for path in adapters}
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_size):
        ids, mask = pad_left(prompts[start : start + batch_size], pad_id)
        real = mask.bool().flatten().to(device)
        with ExitStack() as stack:
            for path, adapter in adapters.items():
                stack.callback(_record(adapter, hidden[path], real))
            model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions(mask).to(device),
                logits_to_keep=1,
                use_cache=False,
            )
    return tuple(_similarity(path, adapters[path], torch.cat(found)) for path, found in hidden.items())


def _record(adapter: Any, found: list[Tensor], real: Tensor) -> Any:
    """Keep A x of all experts for the real tokens of every forward; return how to stop."""
    backend, adapter.backend = adapter.backend, "dense"  # the other one computes the chosen experts only

    def hook(module: Any, args: Any, output: Tensor) -> None:
        found.append(output.reshape(-1, output.shape[-1])[real].double())

    handle = adapter.experts_a.register_forward_hook(hook)

    def stop() -> None:
        handle.remove()
        adapter.backend = backend

    return stop


def _similarity(path: str, adapter: Any, hidden_TR: Tensor) -> ExpertSimilarity:
    """From ``A x`` and the Gram matrix of B: no output of the linear's width is formed."""
    from alphalloc.peft.blocks import block_of

    experts, rank = adapter.num_experts, adapter.expert_rank
    hidden_TEr = hidden_TR.view(-1, experts, rank)
    b_ORd = adapter.experts_b.weight.double()
    gram_ErFs = (b_ORd.t() @ b_ORd).view(experts, rank, experts, rank)
    dots_TEF = torch.einsum("ter,erfs,tfs->tef", hidden_TEr, gram_ErFs, hidden_TEr)
    norms_TE = dots_TEF.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    if not bool((norms_TE > 0).all()):
        raise AdapterError(f"{path}: an expert's output is zero; train the adapter first (B starts at zero)")
    cosines_TEF = dots_TEF / (norms_TE.unsqueeze(2) * norms_TE.unsqueeze(1))
    other = ~torch.eye(experts, dtype=torch.bool)
    pairs = cosines_TEF[:, other.to(cosines_TEF.device)]
    block = block_of(path)
    return ExpertSimilarity(
        module=path,
        layer=-1 if block is None else block.layer,
        between=float(pairs.mean()),
        between_absolute=float(pairs.abs().mean()),
        within=_within(hidden_TEr / norms_TE.unsqueeze(2), gram_ErFs),
        tokens=len(hidden_TEr),
    )


def _within(unit_TEr: Tensor, gram_ErFs: Tensor) -> float:
    """Mean over experts of the mean cosine of two tokens: (‖Σ_t u_t‖² - T) / (T (T - 1)) with unit outputs u_t."""
    tokens, experts, _ = unit_TEr.shape
    if tokens < 2:
        return 1.0
    sums_Er = unit_TEr.sum(0)
    squares = torch.stack([sums_Er[e] @ gram_ErFs[e, :, e] @ sums_Er[e] for e in range(experts)])
    return float(((squares - tokens) / (tokens * (tokens - 1))).mean())
