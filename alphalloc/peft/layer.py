"""The PEFT layer: a frozen linear and the MoE-LoRA adapters on it, by name. The maths is ``alphalloc.moe``'s."""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alphalloc.errors import AdapterError
from alphalloc.moe.layer import MoELora
from alphalloc.peft.config import MoELoraConfig
from alphalloc.peft.register import ADAPTERS, PARTS
from alphalloc.peft.targets import Placement, features

# An adapter folder written with the adapter's name still in its keys (by PEFT below 0.21, without our import).
_DOUBLED_NAME = re.compile(rf"{ADAPTERS}\.(?P<name>[^.]+)\.[^.]+\.(?P<rest>(?:{'|'.join(PARTS)})\..+)$")


class MoELoraLayer(nn.Module, BaseTunerLayer):
    """``base_layer(x)`` plus the output of the active adapters.

    The base layer is only called, so any linear works: plain, Conv1D, 8-bit, 4-bit. Several active adapters add up.

    Args:
        base_layer: the frozen linear.

    Raises:
        AdapterError: it is not a linear.
    """

    adapter_layer_names = (ADAPTERS,)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        size = features(base_layer)
        if size is None:
            raise AdapterError(f"expected a linear to adapt, got {type(base_layer).__name__}")
        self.base_layer = base_layer
        self.in_features, self.out_features = size
        self.alphalloc_molora_adapters = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.register_load_state_dict_pre_hook(_check_loaded)  # type: ignore[no-untyped-call]

    def update_layer(
        self, adapter_name: str, placement: Placement, config: MoELoraConfig, router_donor: MoELora | None = None
    ) -> MoELora:
        """Add the adapter ``adapter_name`` and return it; its router is ``router_donor``'s when one is given."""
        if adapter_name in PARTS:
            raise AdapterError(f"{adapter_name!r} cannot be an adapter's name: its parts are called {', '.join(PARTS)}")
        adapter = MoELora(
            self.in_features,
            self.out_features,
            num_experts=placement.num_experts,
            top_k=placement.top_k,
            r=config.r,
            lora_alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            rank_mode=config.rank_mode,
            normalize_topk=config.normalize_topk,
            router=False if router_donor is not None else None,
        )
        if router_donor is not None:
            adapter.use_router_of(router_donor)
        if not config.init_adapter_weights:
            nn.init.normal_(adapter.experts_b.weight, std=0.02)
        self.alphalloc_molora_adapters[adapter_name] = adapter
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        return adapter

    def adapter(self, name: str) -> MoELora | None:
        """The adapter of that name on this linear, None when it has none."""
        found = self.alphalloc_molora_adapters[name] if name in self.alphalloc_molora_adapters else None  # noqa: SIM401
        return cast("MoELora | None", found)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The adapted linear: ``x`` is (..., in), the result (..., out)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.alphalloc_molora_adapters:
                output = self.alphalloc_molora_adapters[name](x, output)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' weight to the base weight; exact, so only for one expert.

        Raises:
            AdapterError: an adapter has several experts here, the base weight is quantised, or (``safe_merge``) the
                result is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            adapter = self.adapter(name)
            if adapter is None:
                continue
            refuse_merge(name, adapter, self.get_base_layer())
            self._add_to_weight(adapter.delta_weight(), safe=safe_merge)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the merged adapters out of the base weight again (equal to it up to rounding)."""
        for name in reversed(self.merged_adapters):
            adapter = self.adapter(name)
            if adapter is not None:
                self._add_to_weight(-adapter.delta_weight(), safe=False)
        self.merged_adapters = []

    @torch.no_grad()
    def _add_to_weight(self, delta_OD: Tensor, *, safe: bool) -> None:
        base = self.get_base_layer()
        weight: Any = base.weight
        change = delta_OD.T if isinstance(base, Conv1D) else delta_OD
        precise = torch.promote_types(weight.dtype, change.dtype)
        merged = (weight.data.to(precise) + change.to(weight.device, precise)).to(weight.dtype)
        if safe and not bool(torch.isfinite(merged).all()):
            raise AdapterError("the merged weight is not finite; the adapter holds NaN or infinite values")
        weight.data = merged

    def __repr__(self) -> str:
        return f"alphalloc.{super().__repr__()}"


def refuse_merge(name: str, adapter: MoELora, base: nn.Module) -> None:
    """Raise AdapterError unless ``adapter`` can be merged exactly into ``base``."""
    if adapter.num_experts > 1:
        raise AdapterError(
            f"adapter {name!r} has {adapter.num_experts} experts here: what they add depends on the token, so no "
            "weight equals it and it cannot be merged. Keep the adapter unmerged, or write an approximation as a plain "
            "LoRA with `alphalloc adapter export-static`, which measures what it loses; only layers of one expert merge"
        )
    weight = getattr(base, "weight", None)
    if weight is None or not weight.dtype.is_floating_point:
        raise AdapterError(
            f"the base weight is quantised ({type(base).__name__}), so a merge would round the adapter away; load the "
            "base model in bfloat16 or float32 and merge there"
        )


def _check_loaded(
    layer: MoELoraLayer,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Before tensors are loaded: undo a doubled adapter name, and refuse shapes of another model by name."""
    start = f"{prefix}{ADAPTERS}."
    for key in [key for key in state_dict if key.startswith(start)]:
        doubled = _DOUBLED_NAME.search(key)
        if doubled:
            state_dict[f"{start}{doubled['name']}.{doubled['rest']}"] = state_dict.pop(key)
    own = layer.alphalloc_molora_adapters.state_dict(prefix=start)
    for key, tensor in own.items():
        loaded = state_dict.get(key)
        if loaded is not None and tuple(loaded.shape) != tuple(tensor.shape):
            raise AdapterError(
                f"the adapter was made for another base model or schedule: {key.removeprefix('base_model.model.')} has "
                f"shape {tuple(loaded.shape)} in the file, {tuple(tensor.shape)} in this model; load the base model "
                "named in adapter_config.json"
            )
