"""Training under transformers' own Trainer: resuming, checkpointing, accumulation, auxiliary losses."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from alphalloc.errors import AdapterError
from alphalloc.peft import MoELoraCallback, begin_step, callbacks, named_adapters
from alphalloc.peft.routing import contexts


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of tokens, padded on the right to one length; ``lengths`` are the real ones."""

    def __init__(self, lengths: list[int], seed: int = 0, repeat_first: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 64, (len(lengths), max(lengths)), generator=generator)
        if repeat_first:
            self.ids = self.ids[:1].expand_as(self.ids).contiguous()
        self.mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mask = self.mask[index]
        labels = torch.where(mask.bool(), self.ids[index], torch.tensor(-100))
        return {"input_ids": self.ids[index], "attention_mask": mask, "labels": labels}


class KeepGradients(TrainerCallback):
    """The gradients of the first optimizer step."""

    def __init__(self, tiny: Any) -> None:
        self.tiny = tiny
        self.first: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.first:
            self.first = {
                n: p.grad.clone() for n, p in self.tiny.adapter_parameters(model).items() if p.grad is not None
            }


def arguments(folder: Path, **extra: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-2,
        "max_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,
        "seed": 0,
        "train_sampling_strategy": "sequential",
    }
    values.update(extra)
    known = set(TrainingArguments.__dataclass_fields__)
    return TrainingArguments(**{key: value for key, value in values.items() if key in known})


class InOrder(Trainer):
    """Batches in the order of the data, under every version of transformers."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def gradients(tiny: Any, folder: Path, rows: Rows, accumulation: int, **fields: Any) -> dict[str, torch.Tensor]:
    """Gradients of the first step of a fresh tiny Llama under the real Trainer."""
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**fields))
    keeper = KeepGradients(tiny)
    trainer = InOrder(
        model=model,
        args=arguments(folder, gradient_accumulation_steps=accumulation),
        train_dataset=rows,
        callbacks=[keeper],
    )
    trainer.train()
    return keeper.first


def injected(tiny: Any, folder: Path, rows: Rows, accumulation: int, **losses: Any) -> dict[str, torch.Tensor]:
    """What the auxiliary losses add to the gradients: with them, less without them."""
    fields = {"target_modules": ["q_proj", "down_proj"]}
    off = gradients(tiny, folder, rows, accumulation, **fields)
    on = gradients(tiny, folder, rows, accumulation, **fields, **losses)
    return {name: on[name] - off[name] for name in on}


def largest(values: dict[str, torch.Tensor]) -> float:
    return max(float(v.abs().max()) for v in values.values())


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    scale = largest(wanted)
    assert scale > 0
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= tolerance * max(scale, 1.0), name


SWITCH = {"balance": "switch", "balance_coef": 1.0}
MOLA = {"balance": "mola", "balance_coef": 1.0}


@pytest.mark.parametrize("losses", [SWITCH, MOLA], ids=["switch", "mola"])
def test_repeating_a_micro_batch_gives_what_one_gives(losses: dict[str, Any], tiny: Any, tmp_path: Path) -> None:
    rows = Rows([9, 9, 9, 9], repeat_first=True)
    once = injected(tiny, tmp_path, Rows([9], repeat_first=False), 1, **losses)
    four_times = injected(tiny, tmp_path, rows, 4, **losses)
    assert any("router" in name for name in once)
    assert_close(four_times, once)


def test_accumulation_is_the_token_weighted_mean_of_each_micro_batch(tiny: Any, tmp_path: Path) -> None:
    rows = Rows([11, 4, 7])
    parts = [injected(tiny, tmp_path, _only(rows, i), 1, **SWITCH) for i in range(3)]
    # Transformers weighs by predicted tokens: all but the first of each row.
    weights = torch.tensor([10.0, 3.0, 6.0]) / 19 if _shifted() else torch.tensor([11.0, 4.0, 7.0]) / 22
    wanted = {n: sum(w * part[n] for w, part in zip(weights, parts, strict=True)) for n in parts[0]}
    assert_close(injected(tiny, tmp_path, rows, 3, **SWITCH), wanted)  # type: ignore[arg-type]


def _only(rows: Rows, index: int) -> Rows:
    one = Rows([1])
    one.ids, one.mask = rows.ids[index : index + 1], rows.mask[index : index + 1]
    return one


def _shifted() -> bool:
    return "_loss_shifts_labels" in Trainer.__init__.__code__.co_names


def test_a_short_last_accumulation_uses_its_real_length(tiny: Any, tmp_path: Path) -> None:
    # Three rows, accumulation of 8: the only step of the epoch has three micro-batches. Without `num_items_in_batch`
    # (the model's own loss is not asked for it) the callback's count is what divides.
    class Plain(InOrder):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

    def added(rows: Rows, accumulation: int) -> dict[str, torch.Tensor]:
        result = []
        for losses in ({}, SWITCH):
            torch.manual_seed(1)
            model = peft.get_peft_model(tiny.llama(), tiny.moe_config(target_modules=["q_proj"], **losses))
            keeper = KeepGradients(tiny)
            arguments_ = arguments(tmp_path, gradient_accumulation_steps=accumulation)
            Plain(model=model, args=arguments_, train_dataset=rows, callbacks=[keeper]).train()
            result.append(keeper.first)
        return {name: result[1][name] - result[0][name] for name in result[0]}

    assert_close(added(Rows([9, 9, 9], repeat_first=True), 8), added(Rows([9]), 1))


@pytest.mark.parametrize("losses", [SWITCH, {"contrastive": "moelora", "contrastive_start_step": 0}, MOLA])
def test_gradient_checkpointing_changes_no_gradient(losses: dict[str, Any], tiny: Any) -> None:
    found = []
    for checkpointing in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**losses)).train()
        begin_step(model, 0)
        if checkpointing is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(checkpointing)
        call = {"input_ids": tiny.tokens(), "labels": tiny.tokens()}
        if losses is MOLA and checkpointing == {"use_reentrant": True}:
            with pytest.raises(AdapterError, match="router logits carry no gradient: reentrant checkpointing"):
                model(**call)
            continue
        model(**call).loss.backward()
        found.append({name: p.grad for name, p in tiny.adapter_parameters(model).items()})
    for other in found[1:]:
        assert all(torch.allclose(other[name], grad, atol=1e-6) for name, grad in found[0].items())


def test_padding_does_not_count(tiny: Any) -> None:
    def router_gradients(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(target_modules=["q_proj"], **SWITCH)).train()
        begin_step(model, 0)
        labels = torch.where(mask.bool(), ids, torch.tensor(-100))
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        return {n: p.grad for n, p in tiny.adapter_parameters(model).items() if "router" in n}

    ids = tiny.tokens(batch=1, length=6)
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(1, 6), torch.zeros(1, 5)], 1).long()
    assert_close(router_gradients(padded, mask), router_gradients(ids, torch.ones(1, 6).long()), 1e-5)


def test_resuming_from_a_checkpoint_is_bit_exact(tiny: Any, tmp_path: Path) -> None:
    rows = Rows([9] * 8)

    def trained(folder: Path, resume: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(lora_dropout=0.1, **SWITCH))
        options = arguments(folder, max_steps=5, gradient_accumulation_steps=2, save_strategy="steps", save_steps=3)
        Trainer(model=model, args=options, train_dataset=rows).train(resume_from_checkpoint=resume)
        return {name: p.detach().clone() for name, p in tiny.adapter_parameters(model).items()}

    straight = trained(tmp_path / "straight")
    resumed = trained(tmp_path / "resumed", resume=str(tmp_path / "straight" / "checkpoint-3"))
    assert max(float((straight[name] - resumed[name]).abs().max()) for name in straight) == 0.0
    torch.manual_seed(1)
    fresh = peft.get_peft_model(tiny.llama(), tiny.moe_config())
    assert all(not torch.equal(p, straight[n]) for n, p in tiny.adapter_parameters(fresh).items())


def test_the_checkpoint_folder_loads_as_an_adapter(tiny: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config())
    options = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    Trainer(model=model, args=options, train_dataset=Rows([9] * 4)).train()
    loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "checkpoint-2"))
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))


def test_the_trainer_gets_the_callback_by_itself(tiny: Any, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH))
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=Rows([9]))
    assert sum(isinstance(c, MoELoraCallback) for c in trainer.callback_handler.callbacks) == 1
    assert [type(c) for c in callbacks(model)] == [MoELoraCallback]
    assert callbacks(tiny.llama()) == []


def test_the_contrastive_loss_waits_for_the_warm_up_and_at_least_fifty_steps(tiny: Any, tmp_path: Path) -> None:
    def start(warmup: int, **fields: Any) -> int:
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(contrastive="moelora", **fields))
        options = arguments(tmp_path, max_steps=1000, warmup_steps=warmup)

        class Stop(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = True

        Trainer(model=model, args=options, train_dataset=Rows([9]), callbacks=[Stop()]).train()
        return contexts(model)["default"].losses.contrastive_start_step

    assert start(0) == 50
    assert start(80) == 80
    assert start(80, contrastive_start_step=3) == 3


def test_a_loop_that_declares_no_step_is_warned_once(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH)).train()
    with pytest.warns(UserWarning, match=r"nothing tells how many micro-batches.*alphalloc.peft.begin_step"):
        model(input_ids=tiny.tokens())
    quiet = peft.get_peft_model(tiny.llama(), tiny.moe_config()).train()
    told = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH)).train()
    begin_step(told, 0, micro_batches=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for silent in (model, quiet, told):
            silent(input_ids=tiny.tokens())


def test_declared_micro_batches_divide(tiny: Any) -> None:
    def gradient(micro_batches: int) -> torch.Tensor:
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(target_modules=["q_proj"], **SWITCH)).train()
        begin_step(model, 0, micro_batches=micro_batches)
        # No task loss: what reaches the router is the injected loss alone.
        (model(input_ids=tiny.tokens()).logits.sum() * 0.0).backward()
        return dict(named_adapters(model, "default"))["model.layers.2.self_attn.q_proj"].router.weight.grad  # type: ignore[union-attr,return-value]

    assert float(gradient(1).abs().max()) > 0
    assert torch.allclose(gradient(4), gradient(1) / 4, atol=1e-9)


def test_a_reference_forward_between_does_not_change_the_gradient(tiny: Any) -> None:
    def gradient(reference: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH)).train()
        begin_step(model, 0)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        mask = torch.ones(2, 9).long()
        mask[0, 5:] = 0
        output = model(input_ids=tiny.tokens(), attention_mask=mask, labels=tiny.tokens())
        if reference:
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=tiny.tokens())
        output.loss.backward()
        return {n: p.grad for n, p in tiny.adapter_parameters(model).items()}

    plain, between = gradient(False), gradient(True)
    assert all(torch.equal(plain[name], between[name]) for name in plain)


def test_a_copied_model_reports_to_a_context_of_its_own(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH))
    other = copy.deepcopy(model)
    begin_step(other, 7)
    assert (contexts(model)["default"].step, contexts(other)["default"].step) == (0, 7)
    observers = [a.routing_observer for _, a in named_adapters(other, "default") if a.routing_observer is not None]
    assert len(observers) == 14
    assert {id(observer.context) for observer in observers} == {id(contexts(other)["default"])}  # type: ignore[attr-defined]


def test_a_training_forward_with_losses_compiles_to_one_graph(tiny: Any) -> None:
    model = peft.get_peft_model(tiny.llama(), tiny.moe_config(**SWITCH)).train()
    begin_step(model, 0)
    explained = torch._dynamo.explain(model)(input_ids=tiny.tokens(), labels=tiny.tokens())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
