"""The README of this report, from its results."""

from __future__ import annotations

import statistics
from typing import Any

NAMES = ("base", "lora_r", "lora_Er", "dense", "dense_balance", "fixed_gate", "grouped", "loop", "einsum")
LORA_TARGET, LOOP_TARGET = 1.1, 1.1
_LEGEND = (
    "Each figure is CPU time over that of plain LoRA of rank E·r in the same round: the median of the rounds' ratios, "
    "quartiles in brackets for our layer. `dense+bal` also injects the balance loss and records statistics. "
    "`fixed gate` is our layer with its router taken out. `grouped` is the sparse backend, `loop` gathers each "
    "expert's tokens as published MoE-LoRA code does, `einsum` forms every expert's output. K = 2 of E experts, r = 8, "
    "no dropout, float32."
)


def page(results: dict[str, Any]) -> str:
    """Markdown: the answer first, then the tables, then how it was measured."""
    sections = [
        "# How fast is the MoE-LoRA layer?",
        _answer(results),
        "## One adapted linear, forward + backward",
        _layer_table(results["layers"]),
        _LEGEND,
        "## Kept for the backward (MB, besides input and weights)",
        _memory_table(results["layers"]),
        "## A training step of SmolLM2-135M",
        _training(results.get("training")),
        "## How it was measured",
        _method(results),
    ]
    return "\n\n".join(sections) + "\n"


def _answer(results: dict[str, Any]) -> str:
    layers = results["layers"]
    published = [r for r in layers if r["case"]["rank"] <= 80]
    lines = [
        _verdict(
            "against plain LoRA of rank E·r (target: at most 1.1 times its time)", published, _over_lora, LORA_TARGET
        ),
        _verdict("against the expert loop (target: at least 1.1 times faster)", published, _loop, -LOOP_TARGET),
    ]
    block = results["smollm2_block_over_lora_Er"]
    met = "met" if block["dense"] <= LORA_TARGET else "missed"
    lines.append(
        f"- SmolLM2's seven linears of a block together: **{block['dense']:.2f}** times plain LoRA of rank E·r "
        f"({met}); the loop {block['loop']:.2f}, plain LoRA of rank r {block['lora_r']:.2f}."
    )
    grouped = [r for r in layers if r["dense_over_grouped"]["median"] > 1.0 and r["case"]["group"] == "experts"]
    if grouped:
        first = min(r["case"]["rank"] for r in grouped)
        gains = ", ".join(f"{r['dense_over_grouped']['median']:.2f} at {r['case']['rank']}" for r in grouped)
        lines.append(f"- The sparse backend is faster than the dense one from E·r = {first} on: {gains}.")
    lines.append(
        f"- Without its router the same layer takes {min(map(_fixed, published)):.2f} to "
        f"{max(map(_fixed, published)):.2f} times plain LoRA of rank E·r. What is missed is the router's: it reads the "
        "whole input, sends a gradient back to it and picks experts, a cost per token and input feature that neither a "
        "narrow output nor a small E·r makes smaller. Narrow linears and few tokens show it most."
    )
    return "Over the cases with E·r <= 80, as published schedules have:\n\n" + "\n".join(lines)


def _verdict(what: str, layers: list[dict[str, Any]], value: Any, target: float) -> str:
    found = {_label(r): value(r) for r in layers}
    missed = {k: v for k, v in found.items() if (v > target if target > 0 else v < -target)}
    worst = max(found.values()) if target > 0 else min(found.values())
    text = f"- {what}: met in {len(found) - len(missed)} of {len(found)} cases, worst {worst:.2f}."
    if missed:
        text += " Missed: " + ", ".join(f"{k} ({v:.2f})" for k, v in missed.items()) + "."
    return text


def _over_lora(result: dict[str, Any]) -> float:
    value: float = result["over_lora_Er"]["dense"]["median"]
    return value


def _loop(result: dict[str, Any]) -> float:
    value: float = result["loop_over_dense"]["median"]
    return value


def _fixed(result: dict[str, Any]) -> float:
    value: float = result["over_lora_Er"]["fixed_gate"]["median"]
    return value


def _label(result: dict[str, Any]) -> str:
    case = result["case"]
    return f"{case['d']}→{case['o']}, T {case['tokens']}, E {case['experts']}"


def _layer_table(layers: list[dict[str, Any]]) -> str:
    head = (
        "| linear | E·r | LoRA E·r, ms | base | LoRA r | **dense** | dense+bal | fixed gate | grouped | loop | einsum |"
    )
    rows = [head, "|" + "---|" * 11]
    for result in layers:
        over = {name: value["median"] for name, value in result["over_lora_Er"].items()}
        spread = result["over_lora_Er"]["dense"]
        rows.append(
            f"| {_label(result)} | {result['case']['rank']} | {result['cpu_ms']['lora_Er']['median']:.1f} "
            f"| {over['base']:.2f} | {over['lora_r']:.2f} "
            f"| **{over['dense']:.2f}** [{spread['q1']:.2f}, {spread['q3']:.2f}] | {over['dense_balance']:.2f} "
            f"| {over['fixed_gate']:.2f} | {over['grouped']:.2f} | {over['loop']:.2f} | {over['einsum']:.2f} |"
        )
    return "\n".join(rows)


def _memory_table(layers: list[dict[str, Any]]) -> str:
    rows = ["| linear | " + " | ".join(NAMES) + " |", "|" + "---|" * (len(NAMES) + 1)]
    for result in layers:
        if result["case"]["group"] == "experts":
            saved = result["saved_for_backward_mb"]
            rows.append(f"| {_label(result)} | " + " | ".join(f"{saved[name]:.2f}" for name in NAMES) + " |")
    return "\n".join(rows)


def _training(training: dict[str, Any] | None) -> str:
    if training is None:
        return "Not measured in this run."
    rows = [
        "| | trainable | tokens / CPU s | tokens / s (wall) | step time over LoRA | peak memory added by steps, MB |",
        "|" + "---|" * 6,
    ]
    for name in training["trainable"]:
        over = training["time_over_lora"][name]
        rows.append(
            f"| {name} | {training['trainable'][name]:,} | {training['tokens_per_cpu_second'][name]:.0f} "
            f"| {training['tokens_per_second'][name]:.0f} | {over['median']:.3f} [{over['q1']:.3f}, {over['q3']:.3f}] "
            f"| {training['memory_mb'][name]['peak_added']:.0f} |"
        )
    batch, length = training["batch"]
    added = training["time_over_lora"]["ours"]["median"]
    verdict = (
        f"A step takes **{added:.2f}** times that of LoRA (target 1.1: {'met' if added <= LORA_TARGET else 'missed'}): "
        "few tokens on a hidden size of 576 are where the router weighs most, see above."
    )
    note = (
        f"{training['model']}; batch {batch} x {length} tokens, AdamW. `lora` is PEFT's LoRA of rank "
        f"{training['experts'] * training['rank']}, `ours` {training['experts']} experts of rank {training['rank']}, "
        "top 2; `ours_balance` with the injected balance loss. Memory is measured in a process of its own."
    )
    return verdict + "\n\n" + "\n".join(rows) + "\n\n" + note


def _method(results: dict[str, Any]) -> str:
    machine = results["environment"]
    waits = [r["wall_ms"][name]["median"] / r["cpu_ms"][name]["median"] for r in results["layers"] for name in NAMES]
    libraries = "; ".join(
        f"{lib['internal_api']} {lib['version'] or 'of no version'} ({lib['architecture'] or 'no architecture given'}, "
        f"{lib['num_threads']} thread)"
        for lib in machine["libraries"]
    )
    return (
        f"`python reports/moe-layer-speed/run.py` remakes this page. {machine['cpu']}, {machine['cores']} cores, torch "
        f"{machine['torch']} with {machine['torch_threads']} thread ({machine['cpu_capability']}); "
        f"torch multiplies with {'MKL' if machine['mkl'] else 'its own BLAS'}; threadpoolctl sees {libraries}. "
        f"{results['rounds']} rounds after 2 of warm-up; in each, every contender runs once, in rotating order. "
        f"Process CPU time decides: wall time, in results.json, was {statistics.median(waits):.1f} times that, the "
        "machine's other work included. The contenders that compute the same function are checked to "
        "do so before they are timed. Nothing here was measured on a GPU."
    )
