"""The PEFT tuner: puts a MoELoraLayer on every linear that ``targets.place`` names. It decides nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers, check_target_module_exists
from torch import Tensor, nn

from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora
from alphalloc.peft.blocks import block_of, inside_routed_expert
from alphalloc.peft.callback import join_default_callbacks
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.layer import MoELoraLayer, refuse_merge
from alphalloc.peft.register import ADAPTERS, PREFIX, saved_key
from alphalloc.peft.routing import attach_context, detach_context
from alphalloc.peft.targets import TARGET_MODULES, Placement, default_targets, place, router_group


class MoELoraModel(BaseTuner):
    """A base model with MoE-LoRA adapters; made by ``peft.get_peft_model(model, MoELoraConfig(...))``.

    Raises:
        AdapterError: the configuration does not fit the model, see ``targets.place`` and ``blocks.layer_entries``.
    """

    prefix = PREFIX
    tuner_layer_cls = MoELoraLayer
    target_module_mapping = TARGET_MODULES

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base model; PEFT below 0.21 calls its ``forward``, past the hooks that hand the mask to adapters."""
        return self.model(*args, **kwargs)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = default_targets(self.model, model_config.get("model_type"))
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        if isinstance(peft_config.target_modules, str) and peft_config.target_modules.lower() == "all-linear":
            every: Any = _maybe_include_all_linear_layers(peft_config, model).target_modules  # type: ignore[attr-defined]
            # PEFT's shorthand also names linears outside the blocks (poolers) and, by model version, routed experts.
            peft_config.target_modules = sorted(
                path for path in every or () if block_of(path) and not inside_routed_expert(path)
            )
        self._places: dict[str, Placement] = place(model, peft_config)
        self._donors: dict[Any, MoELora] = {}

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        # PEFT declares it static; only called on the tuner, where the placement is known.
        return check_target_module_exists(peft_config, key) and key in self._places

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        placement = self._places.get(current_key)
        if placement is None:
            raise AdapterError(
                f"the adapter's file has weights for {current_key!r}, which its configuration leaves out"
            )
        group = router_group(current_key) if peft_config.share_router == "block" else None
        layer = target if isinstance(target, MoELoraLayer) else MoELoraLayer(target)
        donor = self._donors.get(group) if group is not None else None
        adapter = layer.update_layer(adapter_name, placement, peft_config, donor)
        if group is not None and adapter.router is not None:
            self._donors[group] = adapter
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the adapter on the model and let its layers report to one routing context."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        adapters = dict(named_adapters(model, adapter_name))
        blocks = {path: placement.block for path, placement in self._places.items()}
        config = cast("MoELoraConfig", self.peft_config[adapter_name])
        context = attach_context(model, adapter_name, config, adapters, blocks)
        if context.trains_losses:
            join_default_callbacks()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter and its hooks."""
        super().delete_adapter(adapter_name)
        detach_context(self.model, adapter_name)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        unloaded = super()._unload_and_optionally_merge(*args, **kwargs)
        detach_context(self.model)
        return unloaded

    def adapters(self, adapter_name: str) -> Iterator[tuple[str, MoELora]]:
        """(path of the linear, adapter) of every linear that carries ``adapter_name``, in the model's order."""
        return named_adapters(self.model, adapter_name)

    # merging -----------------------------------------------------------------------------------------------------

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the adapters into the base weights; AdapterError, and nothing merged, unless all have one expert."""
        self._refuse_merge(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base model with the adapters merged; AdapterError, and nothing merged, unless all have one expert."""
        self._refuse_merge(adapter_names)
        merged: nn.Module = super().merge_and_unload(
            progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        return merged

    def _refuse_merge(self, adapter_names: list[str] | None) -> None:
        for layer in self.model.modules():
            if isinstance(layer, MoELoraLayer):
                for name in adapter_names if adapter_names is not None else layer.active_adapters:
                    adapter = layer.adapter(name)
                    if adapter is not None:
                        refuse_merge(name, adapter, layer.get_base_layer())

    # inference ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Without this PEFT drops the argument silently and every row gets the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise AdapterError(
                "adapter_names (another adapter for every row of the batch) is not supported; call the model once for "
                "each adapter after model.set_adapter(name)"
            )
        yield

    # state dict (peft >= 0.21 asks these; below, see register.py) ---------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        saved = saved_key(key, adapter_name)
        if saved is not None:
            return saved
        other: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return other

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        homeless = sorted(key for key in remapped if f".{ADAPTERS}." in key and saved_key(key, adapter_name) is None)
        if homeless:
            raise AdapterError(
                f"the adapter was made for another base model or schedule: it has weights for {len(homeless)} tensors "
                f"this model has no place for, first {homeless[0]}; load the base model named in adapter_config.json"
            )
        return remapped


def named_adapters(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, MoELora]]:
    """(path of the linear, adapter) of every linear of ``model`` that carries ``adapter_name``, in the model's order.

    Paths are the base model's: without PEFT's ``base_model.model.``.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, MoELoraLayer):
            adapter = layer.adapter(adapter_name)
            if adapter is not None:
                yield path.removeprefix("base_model.model."), adapter
