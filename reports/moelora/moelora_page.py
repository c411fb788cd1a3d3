"""The README and the picture of this report."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

Similarity = dict[str, dict[str, list[dict[str, Any]]]]  # arm -> seed -> a row a linear
COLOURS = {"moelora": "#d1495b", "moelora-no-contrast": "#2e4057"}
COSINES = """Cosines between outputs `B_e A_e x` of the trained experts on 64 test questions, every token, every pair.
*Between*: two experts, one token; the loss pushes these apart. *Within*: one expert, two tokens; the loss pulls these
together. Bands in the picture are the range over seeds."""
ROLES = ("q_proj", "v_proj")


def page(found: Any, similarity: Similarity) -> str:
    """Markdown: the answer first, then the tables, then how it was measured."""
    sections = [
        "# MoELoRA against plain LoRA of equal parameters",
        answer(found, similarity),
        "![Accuracy of each arm, seed by seed](accuracy.svg)",
        found.arm_table(),
        found.pair_table(),
        "## What the contrastive loss does to the experts",
        "![Cosine between experts' outputs, layer by layer](similarity.svg)",
        similarity_table(similarity),
        COSINES,
        "## How it was measured",
        method(found),
    ]
    return "\n\n".join(sections) + "\n"


def answer(found: Any, similarity: Similarity) -> str:
    """What these figures say and what they do not."""
    means = ", ".join(f"{arm.name} {arm.accuracy_mean:.3f}" for arm in found.arms)
    resolved = [pair for pair in found.paired if pair.resolved]
    told = (
        "told apart over seeds and over questions: "
        + ", ".join(f"{pair.first} - {pair.second} {pair.difference:+.3f}" for pair in resolved)
        if resolved
        else "no pair is told apart both over seeds and over test questions"
    )
    between, within = (
        [overall(similarity[arm], key) for arm in ("moelora", "moelora-no-contrast")] for key in ("between", "within")
    )
    return (
        f"Mean accuracy over {len(found.arms[0].seeds)} seeds: {means}; {told}. With the contrastive loss (at its "
        f"coefficient of 1e-2) the mean cosine between two experts' outputs is {between[0]:+.3f}, without it "
        f"{between[1]:+.3f}; between one expert's outputs for two tokens it is {within[0]:+.3f}, without it "
        f"{within[1]:+.3f}."
    )


def similarity_table(similarity: Similarity) -> str:
    """Means over layers and seeds, a row an arm and role."""
    rows = ["| Arm | linear | between | between, absolute | within |", "| --- | --- | ---: | ---: | ---: |"]
    for arm, seeds in similarity.items():
        for role in ROLES:
            values = [overall(seeds, key, role) for key in ("between", "between_absolute", "within")]
            rows.append(f"| {arm} | {role} | " + " | ".join(f"{value:+.3f}" for value in values) + " |")
    return "\n".join(rows)


def overall(seeds: dict[str, list[dict[str, Any]]], key: str, role: str = "") -> float:
    """The mean over seeds and linears (those of one role)."""
    return mean(row[key] for rows in seeds.values() for row in rows if row["module"].endswith(role))


def method(found: Any) -> str:
    """What was trained, on what, and with what."""
    machine = found.environment
    notes = "\n".join(f"- {note}" for note in found.notes)
    return f"""- Our declared reading of MoELoRA (arXiv 2402.12851; its code was not released): 8 experts of rank 4 on q
  and v, two a token, balance loss 1e-3, contrastive loss 1e-2 at temperature 0.07 from step 10 of {found.steps} on (the
  default waits until step 50). Plain LoRA has rank 36 on q and 38 on v.
- Model, data and test are those of [schedule-comparison](../schedule-comparison/README.md): {found.model},
  TREC questions, {found.steps} steps of {found.batch_size}, {found.test["examples"]} test questions. All settings are
  in [comparison.yaml](comparison.yaml), the same for all arms.
{notes}
- Machine: {machine["cores"]} shared cores, {machine["threads"]} thread, torch {machine["torch"]}, peft
  {machine["peft"]}; wall times are of a busy machine and compare nothing.
- Raw figures: [comparison.json](comparison.json), [similarity.json](similarity.json). Remake:
  `python reports/moelora/run.py`. The paper's own tasks on LLaMA-7B need a GPU: not measured."""


def draw(similarity: Similarity, path: Path) -> None:
    """Between-expert and within-expert cosines over the depth, for q and v, with and without the loss."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alphalloc"  # the same figures draw the same file
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(8, 5), sharex=True, sharey="row", layout="constrained")
    for column, role in enumerate(ROLES):
        for axes, key in zip(grid[:, column], ("between", "within"), strict=True):
            for arm, seeds in similarity.items():
                _line(axes, [_by_layer(rows, key, role) for rows in seeds.values()], arm)
            axes.axhline(0, color="#bbbbbb", linewidth=0.8)
            axes.set_title(
                f"{role}: {'two experts, one token' if key == 'between' else 'one expert, two tokens'}", fontsize=9
            )
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        grid[1, column].set_xlabel("layer")
    for axes in grid[:, 0]:
        axes.set_ylabel("mean cosine")
    grid[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _by_layer(rows: list[dict[str, Any]], key: str, role: str) -> dict[int, float]:
    return {row["layer"]: row[key] for row in rows if row["module"].endswith(role)}


def _line(axes: Any, seeds: list[dict[int, float]], arm: str) -> None:
    layers = sorted(seeds[0])
    columns = [[seed[layer] for seed in seeds] for layer in layers]
    axes.plot(layers, [mean(column) for column in columns], color=COLOURS[arm], label=arm)
    axes.fill_between(
        layers, list(map(min, columns)), list(map(max, columns)), color=COLOURS[arm], alpha=0.2, linewidth=0
    )
