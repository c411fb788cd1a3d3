"""Remake results.json and README.md: ``python reports/moe-layer-speed/run.py [--rounds N] [--layers-only]``.

One process, one thread, contenders interleaved round by round; process CPU time decides, wall time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from layers import CASES, block_ratios, measure_case
from measure import environment
from page import page

from alphalloc.documents import pretty_json, write_atomic

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of each linear")
    parser.add_argument("--steps", type=int, default=8, help="measured training steps of each model")
    parser.add_argument("--layers-only", action="store_true", help="leave the training half as results.json has it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"environment": environment(), "rounds": options.rounds}
    print(json.dumps(results["environment"], indent=1))
    results["layers"] = []
    for case in CASES:
        results["layers"].append(measure_case(case, options.rounds))
        found = results["layers"][-1]
        print(case, {name: r["median"] for name, r in found["over_lora_Er"].items()}, flush=True)
    results["smollm2_block_over_lora_Er"] = block_ratios(results["layers"])
    results["training"] = _training(options)
    write_atomic(HERE / "results.json", pretty_json(results))
    write_atomic(HERE / "README.md", page(results))


def _training(options: argparse.Namespace) -> Any:
    if options.layers_only:
        path = HERE / "results.json"
        return json.loads(path.read_text()).get("training") if path.exists() else None
    from training_step import measure_training

    return measure_training(options.steps)


if __name__ == "__main__":
    main()
