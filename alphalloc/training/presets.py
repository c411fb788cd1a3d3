"""The published training settings, as values that a recipe takes in place of our defaults.

``alphalora``: the released command of AlphaLoRA (arXiv 2410.10054): estimator and rounding as released, beta 2.5, five
experts a layer, no balance loss (its code leaves it off). ``mola``: MoLA's best shape, the inverted triangle (arXiv
2402.08562, sections 4.2 and 5.4), with the balance loss of its code at 1e-3. Both: AdamW, learning rate 3e-4, 100
steps of warm-up, batch 128 in micro-batches of 8, r 8, lora_alpha 16, dropout 0.05, cut at 256 tokens, the prompt
learnt too, batches by length, seven linears. ``alphalora`` trains 20 epochs, as its command does; that one evaluates
after 10, 15 and 20. MoLA chose among 10, 15 and 20 for each task: ``mola`` takes the least, 10.

``moelora``: our declared reading of arXiv 2402.12851, whose code was not released: 8 experts of rank 4 on q and v with
two of them active, balance 1e-3, contrast 1e-2 at temperature 0.07. Its optimisation is not known to us: our defaults.
"""

from __future__ import annotations

from typing import Any

_MOLA_FAMILY: dict[str, Any] = {
    "data": {"template": "alpaca", "cutoff": 256, "overlong": "truncate", "completion_only": False},
    "adapter": {"method": "moe", "r": 8, "lora_alpha": 16, "dropout": 0.05},
    "optim": {
        "learning_rate": 3e-4,
        "epochs": 10,
        "batch_size": 128,
        "micro_batch_size": 8,
        "warmup_steps": 100,
        "lr_scheduler": "linear",
    },
    "seed": 10,
}

PRESETS: dict[str, dict[str, Any]] = {
    "alphalora": {
        **_MOLA_FAMILY,
        "schedule": {
            "rule": "alpha_power",
            "estimator": "xmin_peak_reference",
            "beta": 2.5,
            "rounding": "reference",
            "experts_per_layer": 5,
            "top_k": 2,
        },
        "adapter": {**_MOLA_FAMILY["adapter"], "balance": "none"},
        "optim": {**_MOLA_FAMILY["optim"], "epochs": 20},
    },
    "mola": {
        **_MOLA_FAMILY,
        "schedule": {"rule": "mola_inverted_triangle", "experts_per_layer": 5, "top_k": 2},
        "adapter": {**_MOLA_FAMILY["adapter"], "balance": "mola", "balance_coef": 1e-3},
    },
    "moelora": {
        "schedule": {"rule": "uniform", "experts_per_layer": 8, "top_k": 2},
        "adapter": {
            "method": "moe",
            "r": 4,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"],
            "balance": "switch",
            "balance_coef": 1e-3,
            "contrastive": "moelora",
            "contrastive_coef": 1e-2,
            "tau": 0.07,
        },
    },
}
