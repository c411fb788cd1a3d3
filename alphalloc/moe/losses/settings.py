"""Which auxiliary losses an adapter is trained with, and what the papers' presets are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from alphalloc.errors import AdapterError

BalanceForm = Literal["none", "switch", "mola"]
ContrastiveForm = Literal["none", "moelora", "comoe"]


@dataclass(frozen=True)
class AuxLosses:
    """The auxiliary losses of one adapter and their coefficients; everything is off by default.

    Attributes:
        balance: ``switch`` is injected per linear, ``mola`` pools a block's linears and runs by the collector.
        balance_coefficient: 1e-3, MoLA's (arXiv 2402.08562, released code).
        z_coefficient: router z-loss, off; ST-MoE used 1e-3 (arXiv 2202.08906).
        contrastive: ``moelora`` is our reading of arXiv 2402.12851, ``comoe`` is arXiv 2505.17553, equations 12-13.
        contrastive_coefficient: 1e-2, the best of CoMoE's sweep.
        temperature: 0.07, SupCon's (arXiv 2004.11362); neither MoE paper's value is known to us.
        contrastive_start_step: first optimizer step with a contrastive loss. Its gradient grows as 1 / ‖B‖ and B starts
            at zero, so it waits for the warm-up; at least 50 (chosen here).
        contrastive_max_tokens: tokens sampled per linear; the cost is quadratic in it (128 chosen here: 256 anchors
            at two experts a token).
        seed: of the token sample, with the step and the linear's position.

    Raises AdapterError for an unknown form or a number out of range.
    """

    balance: BalanceForm = "none"
    balance_coefficient: float = 1e-3
    z_coefficient: float = 0.0
    contrastive: ContrastiveForm = "none"
    contrastive_coefficient: float = 1e-2
    temperature: float = 0.07
    contrastive_start_step: int = 50
    contrastive_max_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.balance not in ("none", "switch", "mola"):
            raise AdapterError(f"balance must be 'none', 'switch' or 'mola', got {self.balance!r}")
        if self.contrastive not in ("none", "moelora", "comoe"):
            raise AdapterError(f"contrastive must be 'none', 'moelora' or 'comoe', got {self.contrastive!r}")
        for name in ("balance_coefficient", "z_coefficient", "contrastive_coefficient"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise AdapterError(f"{name} must be a finite number >= 0, got {value}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise AdapterError(f"temperature must be a positive number, got {self.temperature}")
        if self.contrastive_start_step < 0 or self.contrastive_max_tokens < 2:
            raise AdapterError(
                "contrastive_start_step must be >= 0 and contrastive_max_tokens >= 2, "
                f"got {self.contrastive_start_step} and {self.contrastive_max_tokens}"
            )

    @property
    def injected_balance(self) -> float:
        """Coefficient of the balance loss that each linear injects; 0 when the form is another."""
        return self.balance_coefficient if self.balance == "switch" else 0.0


PRESETS: dict[str, AuxLosses] = {
    # AlphaLoRA's published command switches no balance loss on (arXiv 2410.10054, released code).
    "alphalora": AuxLosses(),
    "mola": AuxLosses(balance="mola", balance_coefficient=1e-3),
    "moelora": AuxLosses(
        balance="switch", balance_coefficient=1e-3, contrastive="moelora", contrastive_coefficient=1e-2
    ),
}
