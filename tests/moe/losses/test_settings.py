"""Settings of the auxiliary losses: presets and refusals."""

from __future__ import annotations

import pytest

from alphalloc.errors import AdapterError
from alphalloc.moe.losses.settings import PRESETS, AuxLosses


def test_presets():
    assert {name: (p.balance, p.contrastive) for name, p in PRESETS.items()} == {
        "alphalora": ("none", "none"),
        "mola": ("mola", "none"),
        "moelora": ("switch", "moelora"),
    }
    assert PRESETS["mola"].balance_coefficient == PRESETS["moelora"].balance_coefficient == 1e-3
    assert PRESETS["moelora"].contrastive_coefficient == 1e-2


def test_only_the_switch_form_is_injected():
    assert AuxLosses(balance="switch", balance_coefficient=0.5).injected_balance == 0.5
    assert AuxLosses(balance="mola", balance_coefficient=0.5).injected_balance == 0.0
    assert AuxLosses(balance_coefficient=0.5).injected_balance == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"balance": "mixtral"}, "'none', 'switch' or 'mola', got 'mixtral'"),
        ({"contrastive": "infonce"}, "'none', 'moelora' or 'comoe'"),
        ({"balance_coefficient": -1.0}, "balance_coefficient must be a finite number >= 0, got -1.0"),
        ({"z_coefficient": float("inf")}, "z_coefficient"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"contrastive_start_step": -1}, "contrastive_start_step must be >= 0"),
        ({"contrastive_max_tokens": 1}, "contrastive_max_tokens >= 2"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(AdapterError, match=message):
        AuxLosses(**change)
