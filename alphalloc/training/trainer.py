"""transformers' Trainer as a recipe asks for it: its arguments, and the order of the examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from alphalloc.errors import RecipeError
from alphalloc.training.batches import IGNORED, EpochSampler, RowDataset
from alphalloc.training.recipe import Recipe

DEFAULT_EPOCHS = 3.0  # chosen here; the papers search 10, 15 and 20, which is for benchmarks


class RecipeTrainer(Trainer):
    """A Trainer whose examples come in an order that depends on (seed, epoch) alone.

    The loss of an evaluation is the mean over all learnt tokens, whatever batches they come in; the Trainer's own is a
    mean over batches of their means.
    """

    def __init__(self, *args: Any, group_batch: int, by_length: bool, **kwargs: Any) -> None:
        self._group_batch = group_batch
        self._by_length = by_length
        self._evaluated = torch.zeros(2, dtype=torch.float64)  # the loss summed over learnt tokens, and their number
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, RowDataset):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(row) for row in dataset.rows]
        return EpochSampler(lengths, self._group_batch, by_length=self._by_length, seed=int(self.args.seed))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's own outcome, its loss weighted by learnt tokens over all batches and processes."""
        self._evaluated.zero_()
        found = super().evaluation_loop(*args, **kwargs)
        loss, tokens = self.accelerator.reduce(self._evaluated.to(self.args.device), "sum").tolist()
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        return found._replace(metrics={**(found.metrics or {}), name: loss / tokens})

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the batch's mean loss alone, and add it to the evaluation's."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Any = self.compute_loss(model, inputs)
        tokens = int((inputs["labels"] != IGNORED).sum())  # the first of a row is never learnt, so all are predicted
        self._evaluated += torch.tensor([float(loss) * tokens, tokens], dtype=torch.float64)
        return loss, None, None


def world_size() -> int:
    """Return how many processes train together, as the launcher says."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def base_dtype(recipe: Recipe) -> str:
    """Return the dtype of the base model's weights. Raises RecipeError for float16 without CUDA."""
    cuda = recipe.run.device == "auto" and torch.cuda.is_available()
    if recipe.run.dtype == "auto":
        return "bfloat16" if cuda else "float32"
    if recipe.run.dtype == "float16" and not cuda:
        raise RecipeError("run.dtype float16 trains on CUDA only; take float32 or bfloat16 on a CPU")
    return recipe.run.dtype


def training_arguments(recipe: Recipe, checkpoints: Path, *, evaluates: bool) -> TrainingArguments:
    """Return the Trainer's arguments; logging, saving and evaluating follow the recipe, reporting is our own.

    Raises RecipeError when the batch cannot be cut into equal micro-batches on every process, or transformers refuses
    a value.
    """
    optim, run = recipe.optim, recipe.run
    micro, accumulation = _micro_batches(recipe)
    cpu = run.device == "cpu" or not torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": run.eval_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": optim.learning_rate,
        "max_steps": optim.steps if optim.steps is not None else -1,
        "num_train_epochs": optim.epochs or DEFAULT_EPOCHS,
        "warmup_steps": optim.warmup_steps,
        "lr_scheduler_type": optim.lr_scheduler,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.max_grad_norm,
        "optim": "adamw_torch",
        "fp16": base_dtype(recipe) == "float16",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_strategy": "steps",
        "logging_steps": run.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if run.eval_every and evaluates else "no",
        "eval_steps": run.eval_every if evaluates else None,
        "prediction_loss_only": True,
        "save_strategy": "steps" if run.save_every else "no",
        "save_steps": run.save_every or 500,
        "save_total_limit": None,  # older checkpoints go when the new one is known to be whole
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": cpu,
        "dataloader_num_workers": run.workers,
        "dataloader_pin_memory": not cpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if cpu and world_size() > 1 else None,
    }
    if run.fsdp and cpu:
        raise RecipeError(
            "run.fsdp shards a model over CUDA devices; on CPUs leave it out, processes then train by DDP"
        )
    if run.fsdp:
        values |= {"fsdp": True, "fsdp_config": {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    try:
        arguments = TrainingArguments(**values)
    except ValueError as exc:
        raise RecipeError(f"transformers refuses the recipe: {exc}") from exc
    _ = arguments.device  # sets the devices up; several visible GPUs in one process would be DataParallel
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _micro_batches(recipe: Recipe) -> tuple[int, int]:
    """(examples of a forward on one process, forwards of a step)."""
    batch, processes = recipe.optim.batch_size, world_size()
    if batch % processes:
        raise RecipeError(f"optim.batch_size {batch} cannot be shared equally by {processes} processes")
    share = batch // processes
    micro = min(recipe.optim.micro_batch_size or share, share)
    if share % micro:
        raise RecipeError(
            f"optim.micro_batch_size {micro} does not divide the {share} examples of each of {processes} processes"
        )
    return micro, share // micro
