"""The report as a page, from results.json alone."""

from __future__ import annotations

from typing import Any

MISSING = "not measured"
TARGETS = (("must", 60.0), ("target", 15.0), ("stretch", 6.0))


def page(results: dict[str, Any]) -> str:
    """README.md: with "not measured" for every figure where there was no card."""
    measured = results["measured"]
    lines = [
        "# GPU speed",
        "",
        "Matrix to exponent for the 224 block matrices of LLaMA-2-7B's shapes, float16 weights generated on the card,",
        "float64 spectra, one run: this package, `torch.linalg.eigvalsh` in a plain loop, AlphaLoRA's procedure",
        "(float32 singular values and a loop over candidates), and what the card's own limits allow.",
        "",
        *(_where(results["environment"]) if measured else ["No CUDA device was available: nothing here was measured."]),
        "",
        "Remade by `python reports/gpu-speed/run.py` on a machine with CUDA, from a plain checkout with torch, numpy",
        "and scipy.",
        "",
        *(["**A trial with tiny shapes: these figures say nothing.**", ""] if results.get("tiny") else []),
        *_sides(results),
        *_targets(results),
        *_bounds(results),
        *_stages(results),
        *_routes(results),
        *_others(results),
    ]
    if results.get("left_out"):
        lines += [f"Left out for want of time: {', '.join(results['left_out'])}.", ""]
    return "\n".join(lines)


def routes_page(results: dict[str, Any]) -> str:
    """The routes by themselves, where they were tried without a card."""
    lines = [
        "# Eigenvalue routes on a CPU",
        "",
        *_where(results["environment"]),
        "",
        "The vendor's solver here is MKL's. The routes of this report are some thousand small torch calls a matrix,",
        "which on a card all matrices of a stack share; on a CPU those calls are nearly all the time.",
        "",
        "CPU seconds a matrix, in stacks. It shows that the routes are right and what they cost without a card; which",
        "one wins on a card it does not show. Errors are shares of the promised bound, n·2.2e-16·λmax.",
        "",
    ]
    for size in results["sizes"]:
        lines += [f"## {size['count']} matrices of {size['side']} rows", "", *_route_table(size), ""]
    return "\n".join(lines)


def _where(where: dict[str, Any]) -> list[str]:
    device = f"{where['device']}; torch {where['torch']}, CUDA {where['cuda']}, Python {where['python']}"
    return [f"{device}; {where['date']}; {where['threads']} CPU threads."]


def _seconds(row: dict[str, Any] | None) -> str:
    return MISSING if row is None else f"{row['median']:.4g} ({row['low']:.4g}-{row['high']:.4g})"


def _ratio(row: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    return MISSING if row is None or base is None else f"{row['median'] / base['median']:.3g}"


def _sides(results: dict[str, Any]) -> list[str]:
    ours, loop, theirs = (results.get(name) for name in ("ours", "plain_loop", "alphalora"))
    sample = {name: f", {row['sample']} matrices scaled up" for name, row in results.items()
              if isinstance(row, dict) and "sample" in row}  # fmt: skip
    return [
        "| | seconds, median (range) | times ours |",
        "|---|---|---|",
        f"| alphalloc, batched | {_seconds(ours)} | {'1' if ours else MISSING} |",
        f"| plain loop of `eigvalsh`{sample.get('plain_loop', '')} | {_seconds(loop)} | {_ratio(loop, ours)} |",
        f"| AlphaLoRA's procedure{sample.get('alphalora', '')} | {_seconds(theirs)} | {_ratio(theirs, ours)} |",
        "",
    ]


def _targets(results: dict[str, Any]) -> list[str]:
    ours, theirs = results.get("ours"), results.get("alphalora")
    lines = ["| aim | wanted | measured | |", "|---|---|---|---|"]
    for name, limit in TARGETS:
        got = f"{ours['median']:.4g} s" if ours else MISSING
        verdict = "" if not ours else "met" if ours["median"] <= limit else "MISSED"
        lines.append(f"| {name}: 224 matrices | <= {limit:g} s | {got} | {verdict} |")
    for name, least in (("must", 10.0), ("target", 30.0)):
        verdict = "" if not (ours and theirs) else "met" if theirs["median"] >= least * ours["median"] else "MISSED"
        got = _ratio(theirs, ours)
        lines.append(f"| {name}: AlphaLoRA's procedure over ours | >= {least:g} | {got} | {verdict} |")
    return [*lines, ""]


def _bounds(results: dict[str, Any]) -> list[str]:
    bounds, floors = results.get("bounds"), results.get("floors")
    rows = [
        ("float64 matrix product, TFLOP/s", bounds and f"{bounds['gemm_flop_per_s'] / 1e12:.3g}"),
        ("memory traffic, GB/s", bounds and f"{bounds['memory_bytes_per_s'] / 1e9:.4g}"),
        ("host to card, GB/s", bounds and f"{bounds['host_to_device_bytes_per_s'] / 1e9:.3g}"),
        ("floor: all flop at the speed of a product, s", floors and f"{floors['gemm_seconds']:.3g}"),
        ("floor: traffic of a one-stage reduction, s", floors and f"{floors['one_stage_traffic_seconds']:.3g}"),
    ]
    lines = ["## Bounds measured on this card", "", "| | |", "|---|---|"]
    return [*lines, *(f"| {name} | {value or MISSING} |" for name, value in rows), ""]


def _stages(results: dict[str, Any]) -> list[str]:
    found = results.get("stages", {})
    names = ("read", "copy", "gram", "eigenvalues", "checks", "fit")
    lines = [
        "## Time by stage",
        "",
        "Milliseconds a matrix, each stage by itself (in a run they overlap); reading is from the page cache.",
        "",
        f"| {' | '.join(names)} |",
        "|---" * len(names) + "|",
    ]
    cells = (f"{1e3 * found[name]:.3g}" if name in found else MISSING for name in names)
    return [*lines, f"| {' | '.join(cells)} |", ""]


def _routes(results: dict[str, Any]) -> list[str]:
    lines = ["## Eigenvalue routes", ""]
    if "routes" not in results:
        return [*lines, f"Which route wins: {MISSING}.", ""]
    size = results["routes"]
    return [*lines, f"{size['count']} matrices of {size['side']} rows; errors as shares of the promised bound.", "",
            *_route_table(size), ""]  # fmt: skip


def _route_table(size: dict[str, Any]) -> list[str]:
    lines = ["| route | s a matrix | error / bound | |", "|---|---|---|---|"]
    for name, row in size["routes"].items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | |")
        else:
            won = "fastest" if name == size["winner"] else ""
            lines.append(f"| {name} | {row['seconds']:.4g} | {row['error_over_bound']:.2g} | {won} |")
    steps = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in size["parts"].items())
    return [*lines, "", f"Steps of the routes written here, a matrix: {steps}."] if steps else lines


def _others(results: dict[str, Any]) -> list[str]:
    found = results.get("others", {})
    lines = [
        "## Other models",
        "",
        "One block measured and scaled up to all.",
        "",
        "| | matrices | s |",
        "|---|---|---|",
    ]
    for name, count in (("Llama-3-70B", 560), ("DeepSeek-MoE-16B (64 experts)", 5292)):
        row = found.get(name)
        seconds = f"{row['seconds']:.4g}" if row else MISSING
        lines.append(f"| {name} | {count} | {seconds} |")
    return [*lines, ""]
