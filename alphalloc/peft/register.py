"""Makes MoE-LoRA known to PEFT. Everything that differs between PEFT versions lives in this file.

PEFT has no plugin mechanism: four dictionaries in ``peft.mapping`` look a method up by its ``peft_type``.

* peft >= 0.21: the state-dict logic is asked of the tuner class, so an entry under a ``str`` subclass key is enough.
  A plain ``str`` is not: transformers calls ``peft_type.value.lower()``.
* peft 0.18.1 to 0.20: ``save_pretrained`` checks ``peft_type in list(PeftType)``, so a real enum member is added. The
  adapter's name is cut out of saved keys by a fixed rule that expects one level below it (ours has two), so
  ``get_peft_model_state_dict`` is completed for our type.

The file an adapter is saved to has the same keys under every version.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, cast

from alphalloc.errors import AdapterError, MissingExtraError

PEFT_TYPE_NAME = "ALPHALLOC_MOLORA"
PREFIX = "alphalloc_molora_"  # transformers derives it from the type's name as well, so it must be name.lower() + "_"
ADAPTERS = f"{PREFIX}adapters"
PEFT_RANGE = ">=0.18.1,<0.22"  # the versions the method is tested on

PARTS = ("experts_a", "experts_b", "router")  # the modules of one adapter, i.e. what stands below its name in a key
_PARTS = "|".join(PARTS)
_MODEL_KEY = re.compile(rf"\.{ADAPTERS}\.(?P<adapter>.+?)\.(?P<rest>(?:{_PARTS})\.[^.]+)$")


class PeftTypeKey(str):
    """A ``peft_type`` outside the enum that answers ``.value`` and ``.name`` as a member of ``PeftType`` would."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The text that stands in ``adapter_config.json``."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """The same text, as for every member of ``PeftType``."""
        return str.__str__(self)

    def __str__(self) -> str:
        # PEFT's status report cuts str(peft_type) at the dot.
        return f"PeftType.{self.value}"


def installed_peft() -> str:
    """The installed PEFT version.

    Raises:
        MissingExtraError: PEFT is not installed.
        AdapterError: its version lies outside ``PEFT_RANGE``.
    """
    try:
        import peft
    except ImportError as exc:
        raise MissingExtraError(
            "alphalloc.peft needs PEFT and transformers, which are not installed: pip install 'alphalloc[peft]'"
        ) from exc
    from packaging.specifiers import SpecifierSet

    version = str(peft.__version__)
    if not SpecifierSet(PEFT_RANGE).contains(version, prereleases=True):
        raise AdapterError(
            f"expected peft{PEFT_RANGE}, which MoE-LoRA is tested on, but peft {version} is installed; "
            f"run: pip install 'peft{PEFT_RANGE}'"
        )
    return version


def has_tuner_hooks() -> bool:
    """Whether this PEFT asks the tuner class which state-dict keys belong to an adapter (0.21 and later)."""
    from peft.tuners.tuners_utils import BaseTuner

    return hasattr(BaseTuner, "_remove_adapter_name_from_key")


@functools.cache
def peft_type() -> str:
    """The value ``MoELoraConfig.peft_type`` holds: a ``PeftTypeKey``, or an enum member below peft 0.21."""
    installed_peft()
    if has_tuner_hooks():
        return PeftTypeKey(PEFT_TYPE_NAME)
    return _enum_member()


def register(config_cls: type, tuner_cls: type) -> None:
    """Enter the two classes under ``ALPHALLOC_MOLORA``. Repeating it changes nothing.

    Raises:
        AdapterError: PEFT outside the tested range, or the name or prefix is taken by another class.
        MissingExtraError: PEFT is not installed.
    """
    installed_peft()
    from peft import mapping

    key = cast("Any", peft_type())
    for table, cls in (
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config_cls),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, tuner_cls),
    ):
        taken = table.get(key)
        if taken is not None and _full_name(taken) != _full_name(cls):
            raise AdapterError(
                f"expected the PEFT type {PEFT_TYPE_NAME} to be free, but {_full_name(taken)} holds it; "
                "only one of the two packages can be imported in one process"
            )
    for other, prefix in mapping.PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if prefix == PREFIX and other != key:
            raise AdapterError(f"expected the parameter prefix {PREFIX!r} to be free, but {other} uses it")
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[key] = config_cls
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[key] = tuner_cls
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[key] = PREFIX
    if not has_tuner_hooks():
        _complete_saving()


def saved_key(key: str, adapter_name: str) -> str | None:
    """The key under which a model's tensor is saved: without the adapter's name; None when it is not of that adapter.

    ``...q_proj.alphalloc_molora_adapters.default.experts_a.weight`` is saved as
    ``...q_proj.alphalloc_molora_adapters.experts_a.weight``.
    """
    match = _MODEL_KEY.search(key)
    if match is None or match["adapter"] != adapter_name:
        return None
    return f"{key[: match.start()]}.{ADAPTERS}.{match['rest']}"


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _enum_member() -> str:
    """A member of ``PeftType`` made by hand: enums are closed, but PEFT below 0.21 tests membership by iterating."""
    from peft import PeftType

    members: dict[str, Any] = PeftType._member_map_
    if PEFT_TYPE_NAME not in members:
        member: Any = str.__new__(PeftType, PEFT_TYPE_NAME)
        member._name_ = PEFT_TYPE_NAME
        member._value_ = PEFT_TYPE_NAME
        member._sort_order_ = len(members)
        members[PEFT_TYPE_NAME] = member
        PeftType._value2member_map_[PEFT_TYPE_NAME] = member
        PeftType._member_names_.append(PEFT_TYPE_NAME)
        type.__setattr__(PeftType, PEFT_TYPE_NAME, member)
    return cast("str", members[PEFT_TYPE_NAME])


def _complete_saving() -> None:
    """Below peft 0.21: cut the adapter's name out of our saved keys, drop other adapters', keep trained biases."""
    from peft.utils import save_and_load

    original: Callable[..., dict[str, Any]] = save_and_load.get_peft_model_state_dict
    if getattr(original, "_alphalloc", False):
        return

    @functools.wraps(original)
    def get_peft_model_state_dict(
        model: Any, state_dict: dict[str, Any] | None = None, adapter_name: str = "default", **kwargs: Any
    ) -> dict[str, Any]:
        if kwargs.pop("unwrap_compiled", False):
            model = getattr(model, "_orig_mod", model)
        config = model.peft_config[adapter_name]
        if config.peft_type != PEFT_TYPE_NAME:
            return original(model, state_dict=state_dict, adapter_name=adapter_name, **kwargs)
        tensors = model.state_dict() if state_dict is None else state_dict
        kept = original(model, state_dict=tensors, adapter_name=adapter_name, **kwargs)
        result = {key: value for key, value in kept.items() if f".{ADAPTERS}." not in key}
        for key, value in tensors.items():
            saved = saved_key(key, adapter_name)
            if saved is not None:
                result[saved] = value
            elif config.bias == "all" and key.endswith(".bias") and ".modules_to_save." not in key:
                result[key] = value
        return result

    get_peft_model_state_dict._alphalloc = True  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in {"peft", "transformers", "trl", "accelerate"} and (
            vars(module).get("get_peft_model_state_dict") is original
        ):
            module.get_peft_model_state_dict = get_peft_model_state_dict  # type: ignore[attr-defined]
