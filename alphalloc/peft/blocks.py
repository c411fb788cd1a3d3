"""Where a linear sits in a model: which list of blocks, and which block of it.

A block is an element of a numbered list of modules ("model.layers.3"); a stack is one such list. Encoder-decoder models
have two. Depth is the length of the list itself, so layers that are not adapted count too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from alphalloc.errors import AdapterError
from alphalloc.peft.config import MoELoraConfig

BLOCK_LISTS = ("layers", "h", "layer", "block", "blocks")  # Llama/OPT/NeoX, GPT-2/Falcon, BERT, T5, vision models
_EXPERT = re.compile(r"\.experts\.\d+(\.|$)")


@dataclass(frozen=True)
class Block:
    """``list_path`` is the path of the list of blocks ("model.layers"), ``layer`` the index in it."""

    list_path: str
    layer: int


def block_of(path: str, names: Iterable[str] = BLOCK_LISTS) -> Block | None:
    """The outermost block on ``path``: the first number that follows one of ``names``; None outside every block."""
    parts = path.split(".")
    wanted = set(names)
    for index in range(1, len(parts)):
        if parts[index].isdigit() and parts[index - 1] in wanted:
            return Block(".".join(parts[:index]), int(parts[index]))
    return None


def inside_routed_expert(path: str) -> bool:
    """Whether the module belongs to one expert of a mixture-of-experts base model.

    transformers 5 fuses these into 3-D parameters that no linear stands for; older versions list them as linears. They
    are left alone in both, so that an adapter means the same everywhere.
    """
    return _EXPERT.search(path) is not None


def layer_entries(model: nn.Module, blocks: Iterable[Block], config: MoELoraConfig) -> dict[Block, int]:
    """For every block its index into the configuration's per-layer lists.

    Args:
        model: the base model, for the true length of each list of blocks.
        blocks: the blocks that hold targeted linears, in the model's order.
        config: its ``num_experts`` (a list) and, through the schedule, the stack of each entry.

    Raises:
        AdapterError: the depth differs from the model's, or it is not clear which stack an entry means.
    """
    used = list(dict.fromkeys(blocks))
    depths = {path: len(_children(model, path)) for path in dict.fromkeys(block.list_path for block in used)}
    stacks = config.layer_stacks()
    if stacks is not None and len({stack for stack, _ in stacks}) > 1:
        return _by_stack_name(used, depths, stacks)
    entries = len(config.num_experts) if isinstance(config.num_experts, list) else 0
    if sum(depths.values()) != entries:
        raise AdapterError(_depth_message(entries, depths))
    order = [layer for _, layer in stacks] if stacks is not None and len(depths) == 1 else list(range(entries))
    if sorted(order) != list(range(entries)):
        raise AdapterError(f"expected every layer 0..{entries - 1} once in the schedule, got layers {sorted(order)}")
    position = {layer: index for index, layer in enumerate(order)}
    first = dict(zip(depths, _starts(depths.values()), strict=True))
    return {block: position[first[block.list_path] + block.layer] for block in used}


def _by_stack_name(used: list[Block], depths: dict[str, int], stacks: list[tuple[str, int]]) -> dict[Block, int]:
    """Entries whose schedule names several stacks: each list of blocks takes those of the name on its path."""
    names = {stack for stack, _ in stacks}
    index = {entry: position for position, entry in enumerate(stacks)}
    result = {}
    for path, depth in depths.items():
        found = names & set(path.split("."))
        if len(found) != 1:
            raise AdapterError(
                f"expected exactly one of the schedule's stacks {sorted(names)} on the path {path!r}, found "
                f"{sorted(found)}; restrict target_modules to the stacks of the schedule"
            )
        stack = found.pop()
        scheduled = sorted(layer for name, layer in stacks if name == stack)
        if scheduled != list(range(depth)):
            raise AdapterError(_depth_message(len(scheduled), {path: depth}))
        result.update({block: index[stack, block.layer] for block in used if block.list_path == path})
    return result


def _depth_message(entries: int, depths: dict[str, int]) -> str:
    found = " + ".join(f"{depth} in {path}" for path, depth in depths.items())
    message = f"expected one entry of num_experts a layer: the model has {found}, but the schedule has {entries}"
    if len(depths) > 1:
        return (
            f"{message}; the target modules are ambiguous, they lie in several stacks: name the one you mean by a "
            "regular expression in target_modules, or give one entry for every layer of all of them"
        )
    return f"{message}; make the schedule from this model, or load the model the schedule was made from"


def _children(model: nn.Module, path: str) -> list[str]:
    return [name for name, _ in model.get_submodule(path).named_children() if name.isdigit()]


def _starts(lengths: Iterable[int]) -> list[int]:
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts
