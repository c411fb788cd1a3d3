"""Tiny random models and adapters; used by the tests and by the scripts they start in processes of their own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from alphalloc.peft import MoELoraConfig, named_adapters

EXPERTS, TOP_K = [2, 1, 4], [1, 1, 2]
VOCABULARY = 64


def llama(layers: int = 3, hidden: int = 32, inner: int = 48, **extra: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config).eval()


def opt() -> Any:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    return transformers.OPTForCausalLM(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).eval()


def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def qwen2_moe() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.Qwen2MoeForCausalLM(config).eval()


def qwen3_moe() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    return transformers.Qwen3MoeForCausalLM(config).eval()


def moe_config(**fields: Any) -> MoELoraConfig:
    """Three layers with 2, 1 and 4 experts; B is not zero, so that the adapter shows."""
    values: dict[str, Any] = {
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "r": 2,
        "lora_alpha": 4,
        "init_adapter_weights": False,
        "task_type": "CAUSAL_LM",
        **fields,
    }
    return MoELoraConfig(**values)


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor | None = None) -> torch.Tensor:
    """What the model answers to fixed tokens, in evaluation mode."""
    return model.eval()(input_ids=tokens() if input_ids is None else input_ids).logits


def adapter_parameters(model: Any, name: str = "default") -> dict[str, torch.Tensor]:
    return {
        f"{path}.{key}": value
        for path, adapter in named_adapters(model, name)
        for key, value in adapter.named_parameters()
    }


def tokenizer() -> Any:
    """A word-level tokenizer over w3 .. w63."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3"
    )


def sentences(count: int = 8, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 12, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{i}" for i in torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths
    ]
