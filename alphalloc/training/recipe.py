"""The recipe of a training run: every setting in one frozen value, read from YAML, checked before any work starts.

A recipe names a model, data and an output folder; everything else has a default. ``preset`` takes the defaults of a
paper (:mod:`alphalloc.training.presets`) in place of ours; what the recipe itself says wins over both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alphalloc.errors import RecipeError
from alphalloc.training.presets import PRESETS
from alphalloc.training.recipe_keys import check_one_source, explain, layered, merged, nearest, with_overrides

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen part of a recipe; a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(Section):
    """Which examples are trained on, and as what text.

    Attributes:
        train: a ``.jsonl`` or ``.json`` file (may end in ``.gz``), a folder saved by ``datasets``, or a hub id.
        eval: where the examples of the evaluations during training come from; None: a share of ``train``.
        eval_share: that share, split off with ``seed``; 0: no evaluation examples.
        name: configuration of a hub data set, such as ``cola`` of ``glue``.
        split: of a hub data set or saved folder.
        eval_split: the split for ``eval``, where it is a hub data set or saved folder too.
        format: ``instruction`` (fields instruction, input, output or answer), ``messages`` (chat), or by the fields.
        template: how instruction examples become text: ``alpaca``'s prompt (as MoLA and AlphaLoRA train), ``plain``
            (instruction, input, answer and no more words: the cheapest), or the tokenizer's ``chat`` template.
        cutoff: tokens an example may have. 256, as MoLA (arXiv 2402.08562, section 5.4).
        overlong: longer examples are left out (``drop``), cut at the right end as the papers' code does
            (``truncate``), or refused (``error``). Their number is said in any case.
        completion_only: whether only the answer's tokens are learnt. The papers learn the prompt too (presets).
        group_by_length: batches of examples of similar length: less padding.
        limit: examples used at most, the first ones; None: all.
        exclude: files of examples that are not trained on: whatever has the words of one of them is left out.
    """

    train: str
    eval: str | None = None
    eval_share: Share = 0.0
    name: str | None = None
    split: str = "train"
    eval_split: str = "validation"
    format: Literal["auto", "instruction", "messages"] = "auto"
    template: Literal["alpaca", "plain", "chat"] = "alpaca"
    cutoff: Annotated[int, Field(ge=4)] = 256
    overlong: Literal["drop", "truncate", "error"] = "drop"
    completion_only: bool = True
    group_by_length: bool = True
    limit: Positive | None = None
    exclude: tuple[str, ...] = ()


class ScheduleSettings(Section):
    """How many experts each layer gets: a saved schedule, counts by hand, or a rule and a budget.

    Attributes:
        file: a saved ``schedule.json``. Excludes all of the others.
        counts: experts of every layer, by hand. Excludes all of the others but ``top_k``.
        rule: rule of the allocation from a fresh analysis of the same model. ``uniform`` and MoLA's shapes
            (``mola_inverted_triangle``) need no analysis.
        experts: budget in experts over all layers; None: ``experts_per_layer``.
        experts_per_layer: the mean. 5, as MoLA and AlphaLoRA (arXiv 2410.10054).
        estimator, beta, rounding, min_experts, max_experts: as of ``alphalloc.analyze`` and ``allocate``.
        top_k: experts a token is sent to, at most. 2, as MoLA.
    """

    file: str | None = None
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    rule: str = "alpha_power"
    experts: Positive | None = None
    experts_per_layer: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5
    estimator: str | None = None
    beta: Annotated[float, Field(allow_inf_nan=False)] | None = None
    rounding: str | None = None
    min_experts: Annotated[int, Field(ge=0)] = 1
    max_experts: Positive | None = None
    top_k: Positive = 2

    @property
    def needs_analysis(self) -> bool:
        """Whether the counts depend on the model's spectrum."""
        name = self.rule.partition(":")[0]
        by_depth = name in ("uniform", "pattern", "explicit") or name.startswith("mola_")
        return self.file is None and self.counts is None and not by_depth

    def used(self) -> dict[str, Any]:
        """Return the settings that have an effect and are not at their defaults, as plain JSON types."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        alone = ("file",) if self.file is not None else ("counts", "top_k") if self.counts is not None else values
        return {key: value for key, value in values.items() if key in alone}

    @model_validator(mode="after")
    def _one_source(self) -> ScheduleSettings:
        if self.file is not None and self.counts is not None:
            raise ValueError("file and counts both say how many experts there are; keep one")
        return self


class AdapterSettings(Section):
    """What is trained. ``method`` ``moe`` is MoE-LoRA, ``lora`` PEFT's own plain LoRA.

    Attributes:
        method: see above.
        r: rank of each expert, or of a uniform plain LoRA. 8, as MoLA and AlphaLoRA.
        lora_alpha: LoRA's factor: outputs are scaled by lora_alpha / r. 16, as the same.
        dropout: on the adapter's input. 0.05, as the same.
        target_modules: names at the end of module paths, ``all-linear``, or None for the family's linears.
        balance, balance_coef, contrastive, contrastive_coef, tau, contrastive_start_step, router_z_coef,
            normalize_topk, share_router, rank_mode: as of ``alphalloc.peft.MoELoraConfig``; for ``moe`` only.
        lora_ranks: ranks of ``lora``: ``uniform`` (r everywhere), ``schedule`` (experts x r in each layer, the same
            total rank) or ``equal`` (as many parameters as the schedule's MoE-LoRA, routers included). The scale
            lora_alpha / r is the same in every layer.
    """

    method: Literal["moe", "lora"] = "moe"
    r: Positive = 8
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16
    dropout: Share = 0.05
    target_modules: tuple[str, ...] | str | None = None
    balance: Literal["none", "switch", "mola"] = "none"
    balance_coef: Coefficient = 1e-3
    contrastive: Literal["none", "moelora", "comoe"] = "none"
    contrastive_coef: Coefficient = 1e-2
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.07
    contrastive_start_step: Annotated[int, Field(ge=0)] | None = None
    router_z_coef: Coefficient = 0.0
    normalize_topk: Literal["auto", "always", "never"] = "auto"
    share_router: Literal["none", "block"] = "none"
    rank_mode: Literal["per_expert", "total"] = "per_expert"
    lora_ranks: Literal["uniform", "schedule", "equal"] = "uniform"


class OptimSettings(Section):
    """The optimisation: AdamW under transformers' Trainer.

    Attributes:
        learning_rate: 3e-4, as MoLA and AlphaLoRA.
        steps: optimizer steps; None: ``epochs`` decide.
        epochs: passes over the data; None: 3 (chosen here; the papers search 10, 15 and 20) unless ``steps`` is given.
        batch_size: examples of an optimizer step, over all processes. 16 (chosen here; the papers: 128).
        micro_batch_size: examples of one forward on one process; None: all of a process's share at once.
        warmup_steps: of the learning rate. 0.
        lr_scheduler: transformers' name of the decay. ``linear``, as the papers.
        weight_decay, max_grad_norm: as of transformers' Trainer (0, 1.0).
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
    """

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    batch_size: Positive = 16
    micro_batch_size: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_scheduler: str = "linear"
    weight_decay: Coefficient = 0.0
    max_grad_norm: Coefficient = 1.0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> OptimSettings:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both say how long to train; keep one")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class RunSettings(Section):
    """Where and how it runs, and what is written down.

    Attributes:
        device: ``auto`` (CUDA where torch sees one) or ``cpu``.
        dtype: of the base model's weights; ``auto``: float32 on a CPU, bfloat16 on CUDA.
        fsdp: shard the model over CUDA devices (FSDP2), started by ``accelerate launch`` or ``torchrun``.
        log_every: steps between lines of log.jsonl and routing.jsonl.
        eval_every: steps between evaluations; None: at the end only, if there are evaluation examples.
        eval_batch_size: examples of an evaluation's forward.
        save_every: steps between checkpoints; None: none but the adapter at the end.
        keep: complete checkpoints kept.
        report_to: ``tensorboard`` and ``wandb``, beside the JSONL files that are always written.
        picture: draw the experts' load to routing.svg at the end.
        workers: processes that prepare batches.
    """

    device: Literal["auto", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    fsdp: bool = False
    log_every: Positive = 10
    eval_every: Positive | None = None
    eval_batch_size: Positive = 16
    save_every: Positive | None = None
    keep: Positive = 2
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    picture: bool = True
    workers: Annotated[int, Field(ge=0)] = 0


class Recipe(Section):
    """A training run. ``data`` may be the path alone, ``schedule`` the path of a saved schedule.

    Attributes:
        model: a transformers folder, a hub id, or a ``.gguf`` file of a causal language model.
        revision: branch, tag or commit of a hub model.
        preset: ``alphalora``, ``mola`` or ``moelora``.
        output: the run's folder.
        seed: of the weights, the order of the examples and the dropout.
    """

    model: str
    data: DataSettings
    output: str = "run"
    revision: str | None = None
    preset: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    schedule: ScheduleSettings = ScheduleSettings()
    adapter: AdapterSettings = AdapterSettings()
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()

    @field_validator("model")
    @classmethod
    def _not_empty(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("expected a folder, a hub id or a .gguf file, found nothing")
        return model

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str = "the recipe") -> Recipe:
        """Return the recipe of plain ``values``: the preset's where they say nothing, our defaults elsewhere.

        Raises RecipeError for a key that does not exist (naming the nearest that does), a value out of range, an
        unknown preset, a missing model or data, or schedule keys that have no effect beside its file or counts.
        """
        values = spelled_out(values)
        check_one_source(values.get("schedule"), ScheduleSettings.model_fields, where)
        name = values.get("preset")
        if name is not None:
            if name not in PRESETS:
                raise RecipeError(f"{where}: no preset {name!r}{nearest(str(name), PRESETS)}")
            values = layered(PRESETS[name], values)
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            raise RecipeError(f"{where}: {explain(exc, cls)}") from exc

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Return the recipe in a YAML (or JSON) file, with ``key=value`` ``overrides`` such as ``optim.steps=60``.

        Relative paths in it are relative to the folder the program runs in. Raises RecipeError when it cannot be read
        and as :meth:`of`; MissingExtraError without ruamel.yaml.
        """
        from alphalloc.training.recipe_files import read_yaml

        said = spelled_out(with_overrides({}, overrides))
        return cls.of(layered(spelled_out(read_yaml(Path(path))), said), where=str(path))

    def changed(self, *overrides: str, **values: Any) -> Recipe:
        """Return this recipe with ``key=value`` overrides, or whole fields: ``recipe.changed("optim.steps=60")``.

        The preset is not applied anew: its values stand in the recipe already.
        """
        plain = with_overrides(merged(self.plain(), values), overrides)
        try:
            return type(self).model_validate(plain)
        except ValidationError as exc:
            raise RecipeError(f"the recipe: {explain(exc, type(self))}") from exc

    def plain(self) -> dict[str, Any]:
        """Return all fields as plain JSON types, in the order they are declared."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the recipe, every default spelled out, as YAML that :meth:`load` reads."""
        from alphalloc.training.recipe_files import yaml_text

        return yaml_text(self.plain())


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``data: FILE`` and ``schedule: FILE`` as sections."""
    values = dict(values)
    for name, key in (("data", "train"), ("schedule", "file")):
        if isinstance(values.get(name), str):
            values[name] = {key: values[name]}
    return values
