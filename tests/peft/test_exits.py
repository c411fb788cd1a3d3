"""The ways out: a static plain LoRA with its measured loss, one LoRA per expert, an untouched adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from alphalloc.errors import AdapterError
from alphalloc.peft import named_adapters
from alphalloc.peft.dump_experts import dump_experts, expert_pair
from alphalloc.peft.export_static import export_static, mean_gates, text_batches
from alphalloc.peft.init_adapter import init_adapter


@pytest.fixture
def batches(tiny: Any) -> Any:
    return text_batches(tiny.tokenizer(), tiny.sentences(12), batch_size=2)


def model_of(tiny: Any, family: str = "llama", **fields: Any) -> Any:
    return peft.get_peft_model(getattr(tiny, family)(), tiny.moe_config(**fields)).eval()


def test_the_mean_gate_is_the_mean_over_real_tokens(tiny: Any, batches: Any) -> None:
    model = model_of(tiny, target_modules=["q_proj"])
    adapters = dict(named_adapters(model, "default"))
    gates = mean_gates(model, batches, adapters)
    path = "model.layers.2.self_attn.q_proj"
    # Naive: the gate of every token, one at a time.
    inputs: list[torch.Tensor] = []
    handle = adapters[path].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    rows = []
    with torch.no_grad():
        for batch in batches:
            model(**batch)
            for row, keep in zip(inputs.pop().flatten(0, 1), batch["attention_mask"].flatten(), strict=True):
                if keep:
                    rows.append(adapters[path].route(row[None]).gate_TE[0])
    handle.remove()
    assert torch.allclose(gates[path], torch.stack(rows).double().mean(0), atol=1e-6)
    assert gates["model.layers.1.self_attn.q_proj"].tolist() == [1.0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_stock_peft_loads_the_static_export_and_measures_what_was_printed(
    family: str, tiny: Any, batches: Any, tmp_path: Path, capsys: Any
) -> None:
    model = model_of(tiny, family)
    with torch.no_grad():
        adapter_logits = [model(**batch).logits for batch in batches]
    report = export_static(model, batches, tmp_path / "static")
    assert str(report) in capsys.readouterr().err
    assert "perplexity" in str(report)
    assert "KL(adapter || static)" in str(report)
    assert report.measured_on == "held-out text"
    assert json.loads((tmp_path / "static" / "static_export.json").read_text())["mean_kl"] == report.mean_kl
    assert str(report) in (tmp_path / "static" / "README.md").read_text()

    static = peft.PeftModel.from_pretrained(getattr(tiny, family)(), str(tmp_path / "static")).eval()
    assert isinstance(static.peft_config["default"], peft.LoraConfig)
    loss = divergence = 0.0
    tokens = 0
    for index in range(0, len(batches), 5):  # what was held out
        batch = batches[index]
        with torch.no_grad():
            logits = static(**batch).logits
        keep = batch["attention_mask"][:, 1:].bool()
        target = batch["input_ids"][:, 1:][keep]
        log_q = logits[:, :-1][keep].double().log_softmax(-1)
        log_p = adapter_logits[index][:, :-1][keep].double().log_softmax(-1)
        loss += float(functional.nll_loss(log_q, target, reduction="sum"))
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        tokens += len(target)
    assert tokens == report.measured_tokens
    assert math.isclose(math.exp(loss / tokens), report.perplexity_static, rel_tol=1e-4)
    assert math.isclose(divergence / tokens, report.mean_kl, rel_tol=1e-3, abs_tol=1e-7)
    assert report.mean_kl > 0


def test_a_static_export_of_single_experts_loses_nothing(tiny: Any, batches: Any, tmp_path: Path) -> None:
    model = model_of(tiny, num_experts=1, top_k=1)
    report = export_static(model, batches[:1], tmp_path)
    assert report.measured_on == "calibration text"
    assert report.mean_kl == pytest.approx(0, abs=1e-9)
    static = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path))
    assert torch.allclose(tiny.logits(static), tiny.logits(model), atol=1e-6)


def test_the_export_leaves_the_model_as_it_was(tiny: Any, batches: Any, tmp_path: Path) -> None:
    model = model_of(tiny).train()
    before = tiny.logits(model)
    model.train()
    export_static(model, batches, tmp_path)
    assert model.training
    assert torch.equal(tiny.logits(model), before)


def test_ranks_differ_by_layer_in_the_export(tiny: Any, batches: Any, tmp_path: Path) -> None:
    export_static(model_of(tiny), batches, tmp_path)
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {k.split(".")[4]: v.shape[0] for k, v in tensors.items() if k.endswith("q_proj.lora_A.weight")}
    assert shapes == {"0": 4, "1": 2, "2": 8}
    assert isinstance(config, peft.LoraConfig)
    assert config.target_modules == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_modules_saved_in_full_are_exported_too(tiny: Any, batches: Any, tmp_path: Path) -> None:
    model = model_of(tiny, num_experts=1, top_k=1, modules_to_save=["lm_head"], target_modules=["q_proj"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2.0)
    export_static(model, batches, tmp_path)
    static = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path))
    assert torch.allclose(tiny.logits(static), tiny.logits(model), atol=1e-5)


def test_experts_are_dumped_one_by_one(tiny: Any, tmp_path: Path) -> None:
    model = model_of(tiny)
    folders = dump_experts(model, tmp_path)
    assert [folder.name for folder in folders] == ["expert_0", "expert_1", "expert_2", "expert_3"]
    layers = [{key.split(".")[4] for key in load_file(folder / "adapter_model.safetensors")} for folder in folders]
    assert layers == [{"0", "1", "2"}, {"0", "2"}, {"2"}, {"2"}]
    for folder in folders:
        peft.PeftModel.from_pretrained(tiny.llama(), str(folder))


def test_gated_experts_add_up_to_the_adapter(tiny: Any) -> None:
    _, adapter = list(named_adapters(model_of(tiny), "default"))[-1]
    x = torch.randn(6, adapter.in_features)
    gate = adapter.route(x).gate_TE
    total = torch.zeros(6, adapter.out_features)
    for expert in range(adapter.num_experts):
        pair = expert_pair(adapter, expert)
        total += gate[:, expert, None] * pair.scaling * (x @ pair.a_RD.T @ pair.b_OR.T)
    assert torch.allclose(adapter(x, torch.zeros_like(total)), total, atol=1e-6)


def test_an_untouched_adapter_changes_nothing_and_trains_on(base_folder: str, tiny: Any, tmp_path: Path) -> None:
    config = tiny.moe_config(init_adapter_weights=True, task_type=None)
    made = init_adapter(base_folder, config, tmp_path)
    assert all(p.is_meta for n, p in made.named_parameters() if "alphalloc_molora" not in n)
    base = tiny.transformers.LlamaForCausalLM.from_pretrained(base_folder)
    expected = tiny.logits(base)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    assert torch.equal(tiny.logits(model), expected)
    parameters = tiny.adapter_parameters(model)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in parameters.values())
    assert all((p == 0).all() == ("experts_b" in name) for name, p in parameters.items())


def test_the_seed_decides_an_untouched_adapter(tiny: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init_adapter(tiny.llama(), tiny.moe_config(init_adapter_weights=True), tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_bad_input_is_refused_by_name(tiny: Any, batches: Any, tmp_path: Path) -> None:
    model = model_of(tiny)
    with pytest.raises(AdapterError, match="no MoE-LoRA adapter named 'other'"):
        export_static(model, batches, tmp_path, adapter_name="other")
    with pytest.raises(AdapterError, match="no MoE-LoRA adapter named 'other'"):
        dump_experts(model, tmp_path, adapter_name="other")
    with pytest.raises(AdapterError, match="calibration text is empty"):
        export_static(model, [], tmp_path)
    with pytest.raises(AdapterError, match="calibration text is empty"):
        text_batches(tiny.tokenizer(), ["", "w3"])
    with pytest.raises(AdapterError, match=r"expected a model folder or hub id with a config.json"):
        init_adapter(str(tmp_path / "none"), tiny.moe_config(), tmp_path / "out")
    with pytest.raises(AdapterError, match=r"modules_to_save=\['lm_head'\] needs the model's weights"):
        init_adapter("x", tiny.moe_config(modules_to_save=["lm_head"]), tmp_path / "out")
    classifier = peft.get_peft_model(tiny.bert(), tiny.moe_config(task_type="SEQ_CLS"))
    with pytest.raises(AdapterError, match="expected a causal language model"):
        export_static(classifier, batches, tmp_path)


def test_the_command_line_makes_an_adapter_and_takes_it_apart(
    base_folder: str, tiny: Any, adapter_folder: str, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    import alphalloc
    from alphalloc.cli.adapter import app

    runner = CliRunner()
    schedule = alphalloc.allocate([2.0, 3.0, 4.0], budget=9)
    schedule.save(tmp_path / "schedule.json")
    made = runner.invoke(
        app,
        ["init", base_folder, "--schedule", str(tmp_path / "schedule.json"), "-o", str(tmp_path / "init"), "-r", "2"],
    )
    assert made.exit_code == 0, made.output
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "init")).num_experts == list(schedule.num_experts)  # type: ignore[attr-defined]

    (tmp_path / "text.txt").write_text("\n".join(tiny.sentences(12)))
    folder = str(tmp_path / "static")
    exported = runner.invoke(app, ["export-static", adapter_folder, "--text", str(tmp_path / "text.txt"), "-o", folder])
    assert exported.exit_code == 0, exported.output
    assert "KL(adapter || static)" in exported.output
    assert (Path(folder) / "adapter_model.safetensors").exists()

    dumped = runner.invoke(app, ["dump-experts", adapter_folder, "-o", str(tmp_path / "experts")])
    assert dumped.exit_code == 0, dumped.output
    assert len(dumped.stdout.split()) == 4

    again = runner.invoke(app, ["dump-experts", adapter_folder, "-o", str(tmp_path / "experts")])
    assert isinstance(again.exception, AdapterError)
    assert "exists and is not an empty folder" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dump-experts", "nowhere", "-o", "{out}"], "expected an adapter folder or hub id, got 'nowhere'"),
        (["export-static", "{adapter}", "--text", "nowhere.txt", "-o", "{out}"], "expected UTF-8 text, or JSONL"),
        (["export-static", "{adapter}", "--text", "{empty}", "-o", "{out}"], "has no text to calibrate on"),
        (
            ["dump-experts", "{adapter}", "--base", "nowhere", "-o", "{out}"],
            "the base model 'nowhere' cannot be loaded",
        ),
        (["init", "{base}", "--schedule", "nowhere.json", "-o", "{out}"], "nowhere.json"),
    ],
)
def test_the_command_line_refuses_by_name(
    arguments: list[str], message: str, base_folder: str, adapter_folder: str, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from alphalloc.cli.adapter import app
    from alphalloc.errors import AlphallocError

    (tmp_path / "empty.txt").write_text("\n \n")
    places = {"out": tmp_path / "out", "adapter": adapter_folder, "base": base_folder, "empty": tmp_path / "empty.txt"}
    result = CliRunner().invoke(app, [argument.format(**places) for argument in arguments])
    assert isinstance(result.exception, AlphallocError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
