"""Each export read by its real target, in a virtual environment of its own: long form only.

The environments see this one's packages and install the trainer over them. ``ALPHALLOC_TRAINER_ENVS`` names a folder in
which they are kept from run to run.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alphalloc.allocation import ExpertSchedule, allocate
from alphalloc.export import ExportOptions, export, write_init_adapter

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

LAYERS = 12
TRAINERS = {
    "axolotl": ["--no-deps", "axolotl==0.19.0"],
    "llamafactory": ["llamafactory==0.9.5"],
    "ms-swift": ["ms-swift==4.6.0"],
}
BASE = """
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
"""
RANKS = """
ranks = {n: m.r["default"] for n, m in model.named_modules() if hasattr(m, "lora_A")}
print("RESULT", json.dumps({n.split("base_model.model.")[-1]: r for n, r in ranks.items()}))
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("ALPHALLOC_TRAINER_ENVS")
    return Path(kept) if kept else tmp_path_factory.mktemp("trainers")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).save_pretrained(path)
    return path


def a_schedule() -> ExpertSchedule:
    return allocate([2.0 + (i * 5 % 12) / 4 for i in range(LAYERS)], 60, constraints={"frozen": ["10"]})


def run(folder: Path, trainer: str, code: str, *arguments: str | Path) -> Any:
    """Run ``code`` in the trainer's environment and return what it prints after RESULT."""
    home = folder / trainer
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        packages = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (packages / "outer.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TRAINERS[trainer]], check=True)
    done = subprocess.run(
        [python, "-c", "import json, sys\n" + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def planned(schedule: ExpertSchedule, r: int) -> dict[str, int]:
    roles = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    return {
        f"model.layers.{i}.{part}.{role}": r * n
        for i, n in enumerate(schedule.num_experts)
        if n
        for part, names in roles.items()
        for role in names
    }


def test_axolotl_accepts_the_settings(folder: Path, tmp_path: Path) -> None:
    result = export(a_schedule(), "axolotl", ExportOptions(r=2, lora_alpha=4))
    path = tmp_path / "axolotl.yaml"
    path.write_text(result.text)
    code = """
import yaml
from axolotl.utils.schemas.peft import LoraConfig
settings = yaml.safe_load(open(sys.argv[1]))
config = LoraConfig(**settings).model_dump()
print("RESULT", json.dumps({key: config[key] for key in settings}))
"""
    assert run(folder, "axolotl", code, path) == result.settings


def test_llamafactory_goes_on_from_the_adapter(folder: Path, base: Path, tmp_path: Path) -> None:
    schedule, adapter = a_schedule(), tmp_path / "adapter"
    options = ExportOptions(r=2, init_adapter=str(adapter))
    write_init_adapter(schedule, options, str(base), adapter)
    path = tmp_path / "train.yaml"
    path.write_text(export(schedule, "llamafactory", options).text)
    code = f"""
import yaml
from llamafactory.hparams import get_train_args
from llamafactory.model.adapter import init_adapter
settings = yaml.safe_load(open(sys.argv[2]))
settings.update(model_name_or_path=sys.argv[1], stage="sft", do_train=True, template="empty", dataset="x",
                output_dir=sys.argv[3])
model_args, _, _, finetuning_args, _ = get_train_args(settings)
{BASE}
model = init_adapter(model.config, model, model_args, finetuning_args, is_trainable=True)
assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
{RANKS}
"""
    assert run(folder, "llamafactory", code, base, path, tmp_path / "out") == planned(schedule, 2)


def test_ms_swift_loads_the_plugin(folder: Path, base: Path, tmp_path: Path) -> None:
    schedule, path = a_schedule(), tmp_path / "alphalloc_plugin.py"
    path.write_text(export(schedule, "ms-swift", ExportOptions(r=2)).text)
    code = f"""
from types import SimpleNamespace
from swift.tuner_plugin import Tuner, tuners_map
from swift.utils import import_external_file
import_external_file(sys.argv[2])
assert issubclass(tuners_map["alphalloc"], Tuner)
{BASE}
model = tuners_map["alphalloc"].prepare_model(SimpleNamespace(task_type="causal_lm"), model)
{RANKS}
"""
    assert run(folder, "ms-swift", code, base, path) == planned(schedule, 2)
