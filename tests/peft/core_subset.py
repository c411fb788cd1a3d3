"""What must hold under every tested PEFT, as a script: run with another PEFT first on the path.

Usage: python core_subset.py EXPECTED_PEFT_VERSION FOLDER. Prints one line a check; the first failure ends it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models as tiny
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

import alphalloc.peft
from alphalloc.errors import AdapterError
from alphalloc.peft import MoELoraConfig, callbacks, named_adapters, register
from alphalloc.peft.dump_experts import dump_experts
from alphalloc.peft.export_static import export_static, text_batches
from alphalloc.peft.init_adapter import init_adapter


def adapted(**fields: Any) -> Any:
    return peft.get_peft_model(tiny.llama(), tiny.moe_config(**fields))


def saves_and_loads(folder: Path) -> None:
    model = adapted()
    model.save_pretrained(str(folder))
    keys = list(load_file(folder / "adapter_model.safetensors"))
    assert all(".alphalloc_molora_adapters." in key and ".default." not in key for key in keys), keys[:3]
    for low in (False, True):
        loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(folder), low_cpu_mem_usage=low)
        assert torch.equal(tiny.logits(loaded), tiny.logits(model))
    assert isinstance(peft.PeftConfig.from_pretrained(str(folder)), MoELoraConfig)
    assert "import alphalloc.peft" in (folder / "README.md").read_text()


def auto_classes_load(folder: Path) -> None:
    base = tiny.llama()
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(folder / "base"), tiny.moe_config())
    model.save_pretrained(str(folder / "adapter"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter"))
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


def transformers_loads_it(folder: Path) -> None:
    from transformers.integrations import peft as integration

    if Version(peft.__version__) < Version(integration.MIN_PEFT_VERSION):
        print("   this transformers refuses this peft for its own adapter loading:", integration.MIN_PEFT_VERSION)
        return
    model = adapted()
    model.save_pretrained(str(folder))
    native = tiny.llama()
    native.load_adapter(str(folder))
    assert torch.equal(tiny.logits(native), tiny.logits(model))
    native.delete_adapter("default")
    assert torch.equal(tiny.logits(native), tiny.logits(tiny.llama()))


def several_adapters(folder: Path) -> None:
    plain = tiny.logits(tiny.llama())
    model = adapted()
    first = tiny.logits(model)
    model.add_adapter("other", tiny.moe_config(num_experts=[0, 3, 3], top_k=2, target_modules=["v_proj"]))
    model.set_adapter("other")
    second = tiny.logits(model)
    with model.disable_adapter():
        assert torch.equal(tiny.logits(model), plain)
    model.save_pretrained(str(folder))
    for name, expected in (("", first), ("other", second)):
        assert not any(".other." in key for key in load_file(folder / name / "adapter_model.safetensors"))
        loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(folder / name))
        assert torch.equal(tiny.logits(loaded), expected)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(tiny.logits(model), first)
    assert torch.equal(tiny.logits(model.unload()), plain)


def saves_modules_and_biases(folder: Path) -> None:
    model = peft.get_peft_model(tiny.bert(), tiny.moe_config(modules_to_save=["classifier"], task_type="SEQ_CLS"))
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
    model.save_pretrained(str(folder / "head"))
    assert torch.equal(
        tiny.logits(peft.PeftModel.from_pretrained(tiny.bert(), str(folder / "head"))), tiny.logits(model)
    )
    model = peft.get_peft_model(tiny.opt(), tiny.moe_config(bias="all"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1)
    model.save_pretrained(str(folder / "bias"))
    assert torch.equal(
        tiny.logits(peft.PeftModel.from_pretrained(tiny.opt(), str(folder / "bias"))), tiny.logits(model)
    )


def casts_and_merges(folder: Path) -> None:
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        base = tiny.llama().to(torch.bfloat16)
        model = peft.get_peft_model(base, tiny.moe_config(), autocast_adapter_dtype=autocast)
        assert {p.dtype for p in tiny.adapter_parameters(model).values()} == {dtype}
    with pytest.raises(AdapterError, match="export-static"):
        adapted().merge_and_unload()
    single = adapted(num_experts=1, top_k=1)
    expected = tiny.logits(single)
    assert torch.allclose(tiny.logits(single.merge_and_unload()), expected, atol=1e-5)


def refuses_another_model(folder: Path) -> None:
    adapted().save_pretrained(str(folder))
    for other in (tiny.llama(hidden=16), tiny.llama(layers=4)):
        with pytest.raises(AdapterError):
            peft.PeftModel.from_pretrained(other, str(folder))


def generates(folder: Path) -> None:
    model = adapted().eval()
    arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    prompt = tiny.tokens(length=5)
    with_cache = model.generate(input_ids=prompt, use_cache=True, **arguments)
    assert torch.equal(with_cache, model.generate(input_ids=prompt, use_cache=False, **arguments))


def trains_and_resumes(folder: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in tiny.tokens(batch=8)]

    def run(name: str, resume: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = adapted(balance="switch", balance_coef=0.1)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder / name),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=1,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
        names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
        assert names.count("MoELoraCallback") == len(callbacks(model)) == 1
        trainer.train(resume_from_checkpoint=resume)
        return {key: p.detach().clone() for key, p in tiny.adapter_parameters(model).items()}

    straight = run("straight")
    resumed = run("resumed", str(folder / "straight" / "checkpoint-2"))
    assert max(float((straight[key] - resumed[key]).abs().max()) for key in straight) == 0.0


def exits(folder: Path) -> None:
    report = export_static(adapted(), text_batches(tiny.tokenizer(), tiny.sentences(8)), folder / "static")
    assert report.mean_kl > 0
    static = peft.PeftModel.from_pretrained(tiny.llama(), str(folder / "static"))
    assert isinstance(static.peft_config["default"], peft.LoraConfig)
    assert len(dump_experts(adapted(), folder / "experts")) == 4
    init_adapter(tiny.llama(), tiny.moe_config(init_adapter_weights=True), folder / "init")
    loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(folder / "init"), is_trainable=True)
    assert torch.equal(tiny.logits(loaded), tiny.logits(tiny.llama()))


def other_families(folder: Path) -> None:
    for family in ("gpt2", "opt", "qwen2_moe", "qwen3_moe"):
        model = peft.get_peft_model(getattr(tiny, family)(), tiny.moe_config())
        assert not any(".experts." in path for path, _ in named_adapters(model, "default"))
        model.save_pretrained(str(folder / family))
        loaded = peft.PeftModel.from_pretrained(getattr(tiny, family)(), str(folder / family))
        assert torch.equal(tiny.logits(loaded), tiny.logits(model)), family


CHECKS: list[Callable[[Path], None]] = [
    saves_and_loads,
    auto_classes_load,
    transformers_loads_it,
    several_adapters,
    saves_modules_and_biases,
    casts_and_merges,
    refuses_another_model,
    generates,
    trains_and_resumes,
    exits,
    other_families,
]


def main(expected: str, folder: Path) -> None:
    assert peft.__version__ == expected, f"{peft.__version__} at {peft.__file__}"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    register.register(MoELoraConfig, alphalloc.peft.MoELoraModel)  # again: idempotent
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    for check in CHECKS:
        check(folder / check.__name__)
        print(f"ok {check.__name__}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
