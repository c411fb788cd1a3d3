"""The steps of a run, in order: model, schedule, data, adapter, trainer; then what is written at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PrinterCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from alphalloc.allocation import ExpertSchedule
from alphalloc.documents import write_atomic
from alphalloc.errors import AdapterError, TrainingError
from alphalloc.peft import callbacks as adapter_callbacks
from alphalloc.training.adapters import adapt, parameter_table
from alphalloc.training.batches import Collator, RowDataset
from alphalloc.training.callbacks import CheckpointKeeper, Meter, Report, RoutingLog, TrainProgress, read_lines
from alphalloc.training.card import new_card, read_card, table_document, write_card
from alphalloc.training.data import Example, examples_digest, read_examples, split_off, without
from alphalloc.training.head import whole_head
from alphalloc.training.memory import peak_bytes, reset_peak
from alphalloc.training.models import BaseModel, find_model, load_adapted, load_model, load_tokenizer
from alphalloc.training.picture import draw_routing
from alphalloc.training.recipe import DataSettings, Recipe
from alphalloc.training.run_folder import RunFolder, make_folder, publish, scratch_beside
from alphalloc.training.schedules import schedule_for
from alphalloc.training.sinks import open_sinks
from alphalloc.training.tokens import Template, Tokenised, template_for, tokenise
from alphalloc.training.train import TrainResult
from alphalloc.training.trainer import RecipeTrainer, base_dtype, training_arguments


@dataclass(frozen=True)
class Examples:
    """One side of the data: where it is from, its digest, and its tokens."""

    source: str
    sha256: str
    tokens: Tokenised

    def document(self) -> dict[str, Any]:
        """Return what the card says of it."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "examples": len(self.tokens.rows),
            "overlong": self.tokens.overlong,
            "dropped": self.tokens.dropped,
            "tokens": sum(map(len, self.tokens.rows)),
        }


@dataclass(frozen=True)
class Run:
    """Everything of a run that is known before the model is built."""

    recipe: Recipe
    folder: RunFolder
    arguments: TrainingArguments
    base: BaseModel
    tokenizer: Any
    schedule: ExpertSchedule
    template: Template
    train_examples: Examples
    eval_examples: Examples | None
    warnings: tuple[str, ...]
    progress: Report | None

    @classmethod
    def prepare(cls, recipe: Recipe, folder: RunFolder, *, progress: Report | None) -> Run:
        """Check and read all inputs; only when they are good is the folder made. No weight of the model is loaded."""
        tell = progress if progress is not None else _silent
        evaluates = recipe.data.eval is not None or recipe.data.eval_share > 0
        arguments = training_arguments(recipe, Path(recipe.output) / "checkpoints", evaluates=evaluates)
        with arguments.main_process_first(desc="reading"):
            tell(TrainProgress("reading data"))
            train, held_out = read_data(recipe.data, recipe.seed)
            tell(TrainProgress("opening the model"))
            base = find_model(recipe.model, recipe.revision)
            tokenizer = load_tokenizer(base)
            template = template_for([*train, *held_out], recipe.data.template)
            train_examples = _tokenised(train, recipe.data.train, tokenizer, recipe.data, template)
            eval_source = recipe.data.eval or recipe.data.train
            eval_examples = _tokenised(held_out, eval_source, tokenizer, recipe.data, template) if held_out else None
            tell(TrainProgress("making the schedule" if recipe.schedule.needs_analysis else "reading the schedule"))
            schedule, notes = schedule_for(recipe.schedule, base)
        run = cls(
            recipe, folder, arguments, base, tokenizer, schedule, template, train_examples, eval_examples,
            (*notes, *_data_warnings(train_examples, recipe.data)), progress,
        )  # fmt: skip
        run._check_same_inputs()
        if arguments.process_index == 0:
            make_folder(folder, recipe)
        return run

    def train(self) -> TrainResult:
        """Build the model, train, evaluate, write everything down."""
        recipe, tell = self.recipe, self.progress or _silent
        tell(TrainProgress("loading the model"))
        reset_peak()
        transformers.set_seed(recipe.seed)
        model = adapt(self._base_model(), recipe.adapter, self.schedule, seed=recipe.seed)
        card = self._card(model)
        checkpoint = self.folder.checkpoint
        main = self.arguments.process_index == 0
        begin = 0 if checkpoint is None else checkpoint.step
        sinks = open_sinks(recipe.run.report_to, self.folder.path, recipe.plain(), begin=begin) if main else []
        meter = Meter(self.folder.path, sinks, self.progress, 0.0 if checkpoint is None else _seconds(checkpoint.notes))
        routing = RoutingLog(self.folder.path, sinks)
        trainer = self._trainer(model, [meter, routing, CheckpointKeeper(meter, recipe.run.keep)])
        began = time.process_time()
        with whole_head(model):
            if not self._over(trainer, [meter, routing]):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
        steps, loss = trainer.state.global_step, _last_loss(trainer)
        seconds, cpu_seconds = meter.seconds, time.process_time() - began
        tell(TrainProgress("evaluating", steps, steps, loss, seconds))
        metrics = self._last_metrics(trainer)
        self._save_adapter(trainer)
        result = TrainResult(
            folder=self.folder.path,
            steps=steps,
            train_loss=loss,
            eval=metrics,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            peak_memory=peak_bytes(),
            parameters=card["parameters"]["trainable"],
            schedule_id=self.schedule.id,
            resumed_from=None if checkpoint is None else checkpoint.step,
            warnings=self.warnings,
        )
        for sink in sinks:
            sink.close()
        if main:
            write_card(self.folder.path, {**card, "status": "finished", "result": result.document()})
            if recipe.run.picture:
                draw_routing(self.folder.path)
        state: Any = self.arguments.distributed_state
        state.wait_for_everyone()
        return result

    def _over(self, trainer: RecipeTrainer, records: Sequence[Any]) -> bool:
        """Load the checkpoint of a run that was stopped after its last step; False when there are steps left.

        The trainer itself would take one step more, or begin another epoch. ``records`` cut their files as it would.
        """
        if self.folder.checkpoint is None:
            return False
        folder = self.folder.checkpoint.folder
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        state.is_world_process_zero = trainer.is_world_process_zero()  # the file has the first process's
        state.is_local_process_zero = trainer.is_local_process_zero()
        trainer.state = state
        model: Any = trainer.model
        model.load_adapter(str(folder), model.active_adapter, is_trainable=True)
        for record in records:
            record.on_train_begin(self.arguments, state, trainer.control)
        return True

    def _last_metrics(self, trainer: RecipeTrainer) -> dict[str, float]:
        """What the evaluation after the last step gave; it is done now unless the trainer has done it."""
        if self.eval_examples is None:
            return {}
        last = trainer.state.log_history[-2:]  # the evaluation of the last step, then the trainer's own summary
        logged = read_lines(self.folder.path / "log.jsonl")[-1:]  # a run killed after this evaluation, resumed
        found = [log for log in [*logged, *last] if "eval_loss" in log and log["step"] == trainer.state.global_step]
        metrics = found[-1] if found else trainer.evaluate()
        return {"eval_loss": float(metrics["eval_loss"])}

    def _base_model(self) -> Any:
        model = load_model(self.base, dtype=base_dtype(self.recipe))
        model.config.use_cache = False
        if self.recipe.optim.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def _trainer(self, model: Any, callbacks: list[Any]) -> RecipeTrainer:
        # Sorted by length, so that evaluation pads little; its loss does not depend on the order.
        held_out = sorted(self.eval_examples.tokens.rows, key=len) if self.eval_examples is not None else []
        inner = model.get_base_model()
        trainer = RecipeTrainer(
            model=model,
            args=self.arguments,
            train_dataset=RowDataset(self.train_examples.tokens.rows),
            eval_dataset=RowDataset(held_out) if held_out else None,
            data_collator=Collator(int(self.tokenizer.pad_token_id), inner),
            callbacks=[*adapter_callbacks(model), *callbacks],
            group_batch=self.recipe.optim.batch_size,
            by_length=self.recipe.data.group_by_length,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _card(self, model: Any) -> dict[str, Any]:
        """The card of the run that begins, written already: a resumed run is checked against it."""
        held_out = self.eval_examples
        schedule = self.schedule
        card = new_card(
            recipe=self.recipe.plain(),
            model={**self.base.reference.model_dump(mode="json"), "source": self.base.source},
            schedule={"id": schedule.id, "num_experts": list(schedule.num_experts), "top_k": list(schedule.top_k)},
            data={
                "template": self.template,  # that prompts were worded by: conversations are, by "chat", unasked
                "train": self.train_examples.document(),
                "eval": None if held_out is None else held_out.document(),
            },
            parameters=table_document(parameter_table(model)),
            warnings=list(self.warnings),
        )
        if self.arguments.process_index == 0:
            write_atomic(self.folder.path / "schedule.json", schedule.to_json())
            write_card(self.folder.path, card)
        return card

    def _check_same_inputs(self) -> None:
        """Raise TrainingError when a resumed run began with another model, schedule or other examples."""
        card = read_card(self.folder.path)
        if card is None or self.folder.finished is not None:
            return
        for what, before, now in (
            ("base model", card["model"]["fingerprint"], self.base.reference.fingerprint),
            ("schedule", card["schedule"]["id"], self.schedule.id),
            ("training data", card["data"]["train"]["sha256"], self.train_examples.sha256),
        ):
            if before != now:
                raise TrainingError(
                    f"{self.folder.path} was begun with another {what} ({before}, now {now}); restore it, or choose "
                    "another output"
                )

    def _save_adapter(self, trainer: RecipeTrainer) -> None:
        target, main = self.folder.adapter, self.arguments.process_index == 0
        state: Any = self.arguments.distributed_state
        scratch = scratch_beside(target) if main else target.parent / ".adapter-elsewhere"
        trainer.save_model(str(scratch))  # every process takes part where the weights are sharded
        state.wait_for_everyone()
        if main:
            self.tokenizer.save_pretrained(str(scratch))
            publish(scratch, target)


def read_data(data: DataSettings, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the training and the evaluation examples that a recipe names. Raises DatasetError."""
    reading: dict[str, Any] = {"name": data.name, "format": data.format, "limit": data.limit}
    train = read_examples(data.train, split=data.split, **reading)
    train = without(train, data.exclude) if data.exclude else train
    if data.eval is not None:
        return train, read_examples(data.eval, split=data.eval_split, name=data.name, format=data.format)
    return split_off(train, data.eval_share, seed)


def load_run(folder: Path, dtype: str | None = None) -> tuple[Any, Any]:
    """Return the trained model, on CUDA where the run would train there, and tokenizer of a run folder.

    Raises TrainingError without a finished run, AdapterError when base model and adapter are not the card's.
    """
    card = read_card(folder)
    if card is None or not (folder / "adapter").is_dir():
        raise TrainingError(f"{folder}: expected a finished run with an adapter; train it first, or resume it")
    recipe = Recipe.of({**card["recipe"], "preset": None})
    base = find_model(recipe.model, recipe.revision)
    if base.reference.fingerprint != card["model"]["fingerprint"]:
        raise AdapterError(
            f"{folder}: the adapter was trained on {card['model']['id']} ({card['model']['fingerprint']}), but "
            f"{recipe.model} is now {base.reference.fingerprint}; restore the base model"
        )
    return load_adapted(base, folder / "adapter", dtype=dtype or base_dtype(recipe), cpu=recipe.run.device == "cpu")


def _tokenised(
    examples: list[Example], source: str, tokenizer: Any, data: DataSettings, template: Template
) -> Examples:
    tokens = tokenise(
        examples,
        tokenizer,
        template=template,
        cutoff=data.cutoff,
        overlong=data.overlong,
        completion_only=data.completion_only,
    )
    return Examples(source, examples_digest(examples), tokens)


def _data_warnings(found: Examples, data: DataSettings) -> Sequence[str]:
    if not found.tokens.overlong:
        return ()
    what = "cut" if data.overlong == "truncate" else "left out"
    total = len(found.tokens.rows) + found.tokens.dropped
    text = f"{found.tokens.overlong} of {total} examples are longer than {data.cutoff} tokens and were {what}"
    return (text,)


def _last_loss(trainer: RecipeTrainer) -> float | None:
    """The last logged training loss, that of a checkpoint after the last step included."""
    return next((float(log["loss"]) for log in reversed(trainer.state.log_history) if "loss" in log), None)


def _seconds(notes: dict[str, Any]) -> float:
    value = notes.get("seconds", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _silent(_: TrainProgress) -> None:
    """Nobody asked for progress."""
