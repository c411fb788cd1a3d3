"""A Llama of four small layers with random weights, for whoever needs a model that transformers can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers


def save_tiny_llama(folder: Path, **options: Any) -> Path:
    """Write the same model every time; ``options`` go to ``save_pretrained``."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder, **options)
    return folder
