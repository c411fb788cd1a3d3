"""Peak memory of analyze() against the size of the checkpoint.

    python reports/memory/run.py                  # 1 and 4 GB, and a LLaMA-shaped 1 GB
    python reports/memory/run.py --sizes 1 4 16   # as published: about 20 GB of temporary disk, some ten minutes

Writes sharded safetensors checkpoints of random float16 matrices into a temporary folder, analyses each in a process of
its own with one worker and with hashing for the cache, and notes how far its resident memory rose. Remakes results.json
and README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE

HERE = Path(__file__).parent
SHARD_BYTES = 10**9
MIB = 2**20
ALLOWANCE = 256 * MIB  # what the promise grants beside the largest tensor and 2·8·nmin²
SHAPES = {"long rows": (1024, 16384), "LLaMA-2-7B": (4096, 11008)}

# In the measured process: everything is imported and used once before the peak is reset, so that the difference is
# what weights and spectra take. Linux only: /proc/self/status and clear_refs.
CHILD = """
import json, re, sys, time
import numpy as np
import alphalloc
from alphalloc.analysis import make_plan
from alphalloc.checkpoint import open_checkpoint

def status(key):
    return int(re.search(rf"{key}:\\s*([0-9]+) kB", open("/proc/self/status").read())[1]) * 1024

path, cache, workers, with_torch = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "torch"
if with_torch:
    import torch
    torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))
rng = np.random.default_rng(0)
alphalloc.analyze({f"layers.{i}.weight": rng.standard_normal((64, 64)) for i in range(4)}, workers=workers)
base = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
plan = make_plan(open_checkpoint(path), workers=workers)
started = time.perf_counter()
alphas = alphalloc.analyze(path, cache=cache, workers=workers)
seconds = time.perf_counter() - started
print(json.dumps({"base": base, "peak": status("VmHWM"), "seconds": seconds, "cpu_seconds": time.process_time(),
                  "matrices": len(alphas.matrices), "planned_peak": plan.peak_bytes, "alpha": alphas.per_layer[0]}))
"""


def write_checkpoint(folder: Path, shape: tuple[int, int], total_bytes: int) -> int:
    """Write shards of about 1 GB that hold ``total_bytes`` of ``shape`` float16 matrices; return how many there are."""
    payload = (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(np.float16).tobytes()
    count = max(2, round(total_bytes / len(payload)))
    each = max(1, SHARD_BYTES // len(payload))
    starts = range(0, count, each)
    weight_map = {}
    for number, start in enumerate(starts, start=1):
        file = f"model-{number:05}-of-{len(starts):05}.safetensors"
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(start, min(start + each, count))]
        header = {
            name: {"dtype": "F16", "shape": shape, "data_offsets": [i * len(payload), (i + 1) * len(payload)]}
            for i, name in enumerate(names)
        }
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for _ in names:
                stream.write(payload)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return count


def measure(kind: str, gigabytes: float, scratch: str | None) -> dict[str, object]:
    shape = SHAPES[kind]
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name) / "model"
        folder.mkdir()
        write_checkpoint(folder, shape, int(gigabytes * 10**9))
        torch = "torch" if min(shape) > NUMPY_MAX_SIDE else "-"
        command = [sys.executable, "-c", CHILD, str(folder), str(Path(name) / "cache"), "1", torch]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    tensor = 2 * shape[0] * shape[1]
    bound = tensor + 2 * 8 * min(shape) ** 2 + ALLOWANCE
    over = found["peak"] - found["base"]
    return {
        "matrices": f"{found['matrices']} of {shape[0]} x {shape[1]} float16 ({kind})",
        "gigabytes": gigabytes,
        "base_mib": round(found["base"] / MIB),
        "peak_over_base_mib": round(over / MIB, 1),
        "planned_peak_mib": round(found["planned_peak"] / MIB, 1),
        "bound_mib": round(bound / MIB, 1),
        "within_bound": over <= bound,
        "seconds": round(found["seconds"], 1),
        "cpu_seconds": round(found["cpu_seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4], metavar="GB")
    parser.add_argument("--llama", type=float, default=1, metavar="GB", help="size of the LLaMA-shaped one; 0: none")
    parser.add_argument("--scratch", help="folder for the temporary checkpoints")
    arguments = parser.parse_args()
    rows = [measure("long rows", size, arguments.scratch) for size in arguments.sizes]
    peaks = [float(str(row["peak_over_base_mib"])) for row in rows]
    if arguments.llama:
        rows.append(measure("LLaMA-2-7B", arguments.llama, arguments.scratch))
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}",
        "rows": rows,
        "spread_over_sizes": round(max(peaks) / min(peaks) - 1, 4),
        "flat_within_10_percent": max(peaks) <= 1.1 * min(peaks),
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "README.md").write_text(page(result))
    print((HERE / "README.md").read_text())


def page(result: dict[str, object]) -> str:
    rows = result["rows"]
    assert isinstance(rows, list)
    lines = [
        "# Peak memory of `analyze`",
        "",
        "How far the resident memory of a process with one worker rises over what it was after imports, by the size of",
        "the checkpoint. The promise: at most the largest tensor + 2·8·nmin² + 256 MiB, whatever the model's size.",
        "",
        "| checkpoint | GB | peak over base, MiB | planned, MiB | promise, MiB | kept | s | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['matrices']} | {row['gigabytes']:g} | {row['peak_over_base_mib']} | {row['planned_peak_mib']} | "
        f"{row['bound_mib']} | {'yes' if row['within_bound'] else 'NO'} | {row['seconds']} | {row['cpu_seconds']} |"
        for row in rows
    ]
    flat = "yes" if result["flat_within_10_percent"] else "NO"
    lines += [
        "",
        f"Flat within 10 % over the sizes of one shape: {flat} (spread {result['spread_over_sizes']:.1%}).",
        f"Base {rows[0]['base_mib']} MiB. {result['machine']}. Seconds include hashing the files for the cache;",
        "the machine ran other work at the same time.",
        "",
        "Remade by `python reports/memory/run.py --sizes 1 4 16`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
