"""The matrices an adapter sits on, by shape alone: what a parameter count needs to know of a model.

The caller fills these from a checkpoint's headers; no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphalloc.errors import InvalidParameterError


@dataclass(frozen=True)
class ModuleShape:
    """One linear: ``role`` in block ``layer`` of ``stack``, from ``in_features`` to ``out_features``."""

    layer: int
    stack: str
    role: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class ModuleShapes:
    """The linears of a model's blocks.

    Raises InvalidParameterError when empty, when one is listed twice or when a size is not positive.
    """

    modules: tuple[ModuleShape, ...]

    def __post_init__(self) -> None:
        if not self.modules:
            raise InvalidParameterError("expected the shapes of at least one module, found none")
        seen = set()
        for shape in self.modules:
            name = (shape.stack, shape.layer, shape.role)
            if name in seen:
                raise InvalidParameterError(f"{_named(shape)} is listed twice among the shapes")
            seen.add(name)
            if min(shape.in_features, shape.out_features) < 1:
                raise InvalidParameterError(
                    f"{_named(shape)}: expected positive sizes, found {shape.in_features} x {shape.out_features}"
                )

    @classmethod
    def uniform(cls, num_layers: int, sizes: Mapping[str, tuple[int, int]]) -> ModuleShapes:
        """Return ``num_layers`` equal blocks: ``sizes`` maps a role to (in_features, out_features)."""
        return cls(
            tuple(
                ModuleShape(layer, "", role, in_features, out_features)
                for layer in range(num_layers)
                for role, (in_features, out_features) in sizes.items()
            )
        )

    @classmethod
    def of_matrices(cls, matrices: Iterable[Any]) -> ModuleShapes:
        """Return the shapes of weight matrices: anything with layer, stack, role and ``shape`` or rows and cols.

        Matrices outside blocks (layer -1) are left out. A role that a block has several times (the experts of a
        mixture) is not a linear that an adapter can sit on: InvalidParameterError.
        """
        found = []
        for matrix in matrices:
            rows, cols = matrix.shape if hasattr(matrix, "shape") else (matrix.rows, matrix.cols)
            if matrix.layer >= 0:
                found.append(ModuleShape(matrix.layer, matrix.stack, matrix.role, int(cols), int(rows)))
        return cls(tuple(found))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles there are, in order of appearance."""
        return tuple(dict.fromkeys(shape.role for shape in self.modules))

    def only(self, target_modules: Sequence[str] | None) -> ModuleShapes:
        """Return the modules of these roles; all when None. InvalidParameterError for a role that does not occur."""
        if target_modules is None:
            return self
        unknown = [role for role in target_modules if role not in self.roles]
        if unknown or not target_modules:
            raise InvalidParameterError(
                f"no module has the role {unknown[0] if unknown else ''!r}; the model's roles: {', '.join(self.roles)}"
            )
        return ModuleShapes(tuple(shape for shape in self.modules if shape.role in target_modules))


def _named(shape: ModuleShape) -> str:
    return ".".join(part for part in (shape.stack, str(shape.layer), shape.role) if part)
