"""What a PeftModel does: saving, loading, several adapters, dtypes, sharing, generation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alphalloc.errors import AdapterError
from alphalloc.peft import MoELoraLayer, named_adapters


@pytest.fixture
def model(base: Any, tiny: Any) -> Any:
    return peft.get_peft_model(base, tiny.moe_config())


def test_get_peft_model_trains_the_adapters_and_nothing_else(model: Any, tiny: Any) -> None:
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"base_model.model.{n}" for n in _in_model(tiny.adapter_parameters(model))}
    model(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in trainable)


def _in_model(names: Any) -> set[str]:
    """``layers.0.q_proj.experts_a.weight`` as the model calls it."""
    result = set()
    for name in names:
        path, part, weight = name.rsplit(".", 2)
        result.add(f"{path}.alphalloc_molora_adapters.default.{part}.{weight}")
    return result


def test_the_parameter_count_is_the_documented_sum(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(target_modules=["q_proj", "down_proj"]))
    shapes, rank = ((32, 32), (48, 32)), 2
    expected = sum(e * rank * (i + o) + (e > 1) * e * i for e in tiny.EXPERTS for i, o in shapes)
    assert model.get_nb_trainable_parameters()[0] == expected


def test_from_pretrained_gives_the_same_logits_without_a_warning(
    model: Any, tiny: Any, base_folder: str, tmp_path: Path
) -> None:
    expected = tiny.logits(model)
    model.save_pretrained(str(tmp_path))
    fresh = tiny.transformers.LlamaForCausalLM.from_pretrained(base_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    assert torch.equal(tiny.logits(loaded), expected)


def test_the_saved_file_has_neither_the_adapters_name_nor_base_weights(adapter_folder: str) -> None:
    keys = load_file(Path(adapter_folder) / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.alphalloc_molora_adapters.router.weight" in keys
    assert all(".alphalloc_molora_adapters." in key and ".default." not in key for key in keys)


def test_low_cpu_mem_usage_loads_the_same(base: Any, tiny: Any, adapter_folder: str) -> None:
    expected = tiny.logits(peft.PeftModel.from_pretrained(base, adapter_folder))
    light = peft.PeftModel.from_pretrained(tiny.llama(), adapter_folder, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in light.parameters())
    assert torch.equal(tiny.logits(light), expected)


def test_several_adapters_switch_disable_delete_and_unload(base: Any, tiny: Any, tmp_path: Path) -> None:
    plain = tiny.logits(base)
    model = peft.get_peft_model(base, tiny.moe_config())
    first = tiny.logits(model)
    model.add_adapter("other", tiny.moe_config(num_experts=[0, 3, 3], top_k=2, target_modules=["v_proj"]))
    assert torch.equal(tiny.logits(model), first)
    model.set_adapter("other")
    second = tiny.logits(model)
    assert not torch.equal(first, second)
    assert not torch.equal(second, plain)
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".default." in n} == set()
    with model.disable_adapter():
        assert torch.equal(tiny.logits(model), plain)
    assert torch.equal(tiny.logits(model), second)

    model.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), "second")
    assert torch.equal(tiny.logits(again), first)
    again.set_adapter("second")
    assert torch.equal(tiny.logits(again), second)
    assert not any(".default." in key for key in load_file(tmp_path / "other" / "adapter_model.safetensors"))

    model.set_adapter("default")
    model.delete_adapter("other")
    assert list(named_adapters(model, "other")) == []
    assert torch.equal(tiny.logits(model), first)
    unloaded = model.unload()
    assert torch.equal(tiny.logits(unloaded), plain)
    assert not any(isinstance(module, MoELoraLayer) for module in unloaded.modules())
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks


def test_status_names_the_method(model: Any) -> None:
    status = model.get_model_status()
    assert status.peft_types == {"default": "ALPHALLOC_MOLORA"}
    assert status.enabled is True
    assert status.active_adapters == ["default"]


def test_modules_to_save_are_trained_and_reloaded(tiny: Any, tmp_path: Path) -> None:
    config = tiny.moe_config(modules_to_save=["classifier"], task_type="SEQ_CLS")
    model = peft.get_peft_model(tiny.bert(), config)
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert head.weight.requires_grad
    with torch.no_grad():
        head.weight.add_(1.0)
    expected = tiny.logits(model)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(tiny.logits(peft.PeftModel.from_pretrained(tiny.bert(), str(tmp_path))), expected)


def test_trained_biases_are_saved(tiny: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny.opt(), tiny.moe_config(bias="all"))
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert biases
    assert all(p.requires_grad for p in biases)
    with torch.no_grad():
        for bias in biases:
            bias.add_(0.1)
    expected = tiny.logits(model)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(tiny.logits(peft.PeftModel.from_pretrained(tiny.opt(), str(tmp_path))), expected)


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_a_bfloat16_base_gets_float32_adapters_unless_told_otherwise(autocast: bool, dtype: Any, tiny: Any) -> None:
    base = tiny.llama().to(torch.bfloat16)
    model = peft.get_peft_model(base, tiny.moe_config(), autocast_adapter_dtype=autocast)
    assert {p.dtype for p in tiny.adapter_parameters(model).values()} == {dtype}
    output = model.train()(input_ids=tiny.tokens(), labels=tiny.tokens())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny.adapter_parameters(model).values())
    assert sum(float(p.grad.abs().sum()) for p in tiny.adapter_parameters(model).values()) > 0


def test_bfloat16_reloads_to_the_same_logits(tiny: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny.llama().to(torch.bfloat16), tiny.moe_config())
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny.llama().to(torch.bfloat16), str(tmp_path))
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


def test_generation_with_the_key_value_cache_equals_without(model: Any, tiny: Any) -> None:
    arguments = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    prompt = tiny.tokens(batch=2, length=5)
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    model.eval()
    cached = model.generate(input_ids=prompt, attention_mask=mask, use_cache=True, **arguments)
    assert torch.equal(cached, model.generate(input_ids=prompt, attention_mask=mask, use_cache=False, **arguments))
    assert cached.shape == (2, 13)


def test_one_expert_everywhere_merges_exactly(base: Any, tiny: Any) -> None:
    model = peft.get_peft_model(base, tiny.moe_config(num_experts=1, top_k=1))
    expected = tiny.logits(model)
    model.merge_adapter()
    assert torch.allclose(tiny.logits(model), expected, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(tiny.logits(model), expected, atol=1e-5)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, MoELoraLayer) for module in merged.modules())
    assert torch.allclose(tiny.logits(merged), expected, atol=1e-5)


def test_a_refused_merge_changes_no_layer(model: Any, tiny: Any) -> None:
    # Layer 1 has one expert and could be merged; nothing is, since layer 0 cannot.
    expected = tiny.logits(model)
    for merge in (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.merge_and_unload(adapter_names=["default"]),
    ):
        with pytest.raises(AdapterError, match="has 2 experts here"):
            merge()
    assert torch.equal(tiny.logits(model), expected)
    assert not any(layer.merged for layer in model.modules() if isinstance(layer, MoELoraLayer))


def test_a_shared_router_is_one_decision_saved_once(base: Any, tiny: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(base, tiny.moe_config(share_router="block"))
    routers = {path for path, a in named_adapters(model, "default") if a.router is not None}
    assert routers == {
        f"model.layers.{i}.{name}"
        for i in (0, 2)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    }
    adapters = dict(named_adapters(model, "default"))
    x = torch.randn(7, 32)
    chosen = [adapters[f"model.layers.2.self_attn.{n}_proj"].route(x).chosen_TK for n in "qkv"]
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])
    expected = tiny.logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path))
    assert torch.equal(tiny.logits(loaded), expected)
    light = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(tiny.logits(light), expected)


def test_an_adapter_of_another_width_is_refused(tiny: Any, adapter_folder: str) -> None:
    with pytest.raises(AdapterError, match=r"made for another base model or schedule: model.layers.0.* has shape"):
        peft.PeftModel.from_pretrained(tiny.llama(hidden=16), adapter_folder)


def test_an_adapter_of_another_depth_is_refused(tiny: Any, adapter_folder: str) -> None:
    with pytest.raises(AdapterError, match=r"the model has 4 in model.layers, but the schedule has 3"):
        peft.PeftModel.from_pretrained(tiny.llama(layers=4), adapter_folder)


def test_a_file_with_weights_the_model_has_no_place_for_is_refused(
    tiny: Any, adapter_folder: str, tmp_path: Path
) -> None:
    tensors = load_file(Path(adapter_folder) / "adapter_model.safetensors")
    key = next(iter(tensors))
    tensors[key.replace("layers.0", "layers.7")] = tensors[key].clone()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((Path(adapter_folder) / "adapter_config.json").read_text())
    with pytest.raises(AdapterError, match=r"weights for 1 tensors this model has no place for, first .*layers.7"):
        peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path))


def test_an_adapter_for_every_row_is_refused(model: Any, tiny: Any) -> None:
    with pytest.raises(AdapterError, match=r"adapter_names .* is not supported"):
        model.eval()(input_ids=tiny.tokens(), adapter_names=["default", "default"])


def test_rank_mode_total_splits_the_rank(base: Any, tiny: Any) -> None:
    model = peft.get_peft_model(base, tiny.moe_config(r=8, rank_mode="total"))
    assert [a.experts_a.out_features for _, a in named_adapters(model, "default")] == [8] * 21
    with pytest.raises(AdapterError, match="5 is not a multiple of"):
        peft.get_peft_model(tiny.llama(), tiny.moe_config(r=5, rank_mode="total"))


def test_normalising_a_single_choice_warns_that_the_router_learns_nothing(tiny: Any) -> None:
    with pytest.warns(UserWarning, match="gives the router no gradient|router no"):
        peft.get_peft_model(tiny.llama(), tiny.moe_config(top_k=1, normalize_topk="always"))


def test_the_folder_says_how_to_load_it(adapter_folder: str, base_folder: str) -> None:
    text = (Path(adapter_folder) / "README.md").read_text()
    assert text.startswith("---\n")
    assert "pip install 'alphalloc[peft]'" in text
    assert "import alphalloc.peft" in text
    assert base_folder in text
    code = text.split("```python\n")[1].split("```")[0].replace("path/of/this/folder", adapter_folder)
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["model"], peft.PeftModel)


def test_the_folder_of_a_second_adapter_says_it_too(model: Any, tiny: Any, tmp_path: Path) -> None:
    model.add_adapter("other", tiny.moe_config())
    for _ in range(2):  # saving again adds nothing
        model.save_pretrained(str(tmp_path))
    for folder in (tmp_path, tmp_path / "other"):
        assert (folder / "README.md").read_text().count("## How to load this adapter") == 1
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "ALPHALLOC_MOLORA"


def test_a_model_that_is_not_from_transformers(tmp_path: Path, tiny: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x).tanh()
            return x

    config = tiny.moe_config(target_modules=r"layers\.\d+", task_type=None, layers_pattern="layers")
    with pytest.raises(AdapterError, match="lies outside the blocks"):
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), tiny.moe_config(target_modules=["0"], task_type=None))  # type: ignore[arg-type]
    model = peft.get_peft_model(Net(), config)  # type: ignore[arg-type]
    assert [a.num_experts for _, a in named_adapters(model, "default")] == [2, 1, 4]
    x = torch.randn(5, 4)
    expected = model.eval()(x)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(peft.PeftModel.from_pretrained(Net(), str(tmp_path)).eval()(x), expected)  # type: ignore[arg-type]
