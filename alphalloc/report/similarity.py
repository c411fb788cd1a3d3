"""How alike the experts of a trained adapter are: cosines between their updates B A, read from the adapter's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alphalloc.checkpoint.matrices import StoredTensor
from alphalloc.checkpoint.safetensors import read_headers
from alphalloc.errors import DocumentError

FILE = "adapter_model.safetensors"
ADAPTER = ".alphalloc_molora_adapters."
MAX_BYTES = 8 * 2**30  # chosen here: no adapter is larger; a model's own weights would be


@dataclass(frozen=True)
class Alike:
    """The experts of one linear: ``mean`` and ``largest`` cosine over their pairs, None where all updates are zero."""

    module: str
    num_experts: int
    mean: float | None
    largest: float | None


def expert_similarity(folder: Path, num_experts: Mapping[str, int] | None = None) -> tuple[Alike, ...]:
    """Return, for each linear with several experts, how alike their updates are; none for a plain LoRA.

    The cosine of experts i and j is <B_i A_i, B_j A_j> / (‖B_i A_i‖ ‖B_j A_j‖) with the Frobenius product, formed
    from the two small Gram matrices: <B_i A_i, B_j A_j> = Σ (B_iᵀ B_j) ∘ (A_i A_jᵀ). ``num_experts`` names the
    experts of linears that share another's router, by module path. Raises DocumentError, or a CheckpointError.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    tensors = {tensor.name: tensor for tensor in read_headers(path)}
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_BYTES:
        raise DocumentError(f"{path}: expected an adapter of at most {MAX_BYTES} bytes")
    found = []
    for name, first in tensors.items():
        module, _, rest = name.partition(ADAPTER)
        if not rest.endswith("experts_a.weight"):
            continue
        second = tensors.get(name.replace("experts_a.weight", "experts_b.weight"))
        router = tensors.get(name.replace("experts_a.weight", "router.weight"))
        module = module.removeprefix("base_model.model.")
        experts = router.shape[0] if router is not None else (num_experts or {}).get(module, 1)
        if second is None or experts < 2 or first.shape[0] % experts or second.shape[1] != first.shape[0]:
            continue
        found.append(_alike(module, first, second, experts))
    return tuple(found)


def _alike(module: str, first: StoredTensor, second: StoredTensor, experts: int) -> Alike:
    import numpy as np

    a_RI = np.array(first.load(), dtype=np.float64)  # copied at once: the next tensor is read into the same buffer
    b_OR = np.array(second.load(), dtype=np.float64)
    rank = len(a_RI) // experts
    products = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).reshape(experts, rank, experts, rank).sum((1, 3))
    norms = np.sqrt(np.diag(products))
    if not norms.all() or not np.isfinite(products).all():
        return Alike(module, experts, None, None)
    cosines = (products / np.outer(norms, norms))[np.triu_indices(experts, 1)]
    return Alike(module, experts, float(cosines.mean()), float(cosines.max()))
