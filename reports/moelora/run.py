"""Remake this report: ``python reports/moelora/run.py``; stopped, it goes on where it was.

Trains SmolLM2-135M on TREC questions with MoELoRA, with the same without its contrastive loss, and with plain LoRA of
as many parameters, three seeds each; then measures how alike the trained experts are. Writes comparison.json,
similarity.json, similarity.svg and README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import platformdirs

from alphalloc.documents import pretty_json, write_atomic
from alphalloc.training.compare import compare_schedules

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parent / "schedule-comparison"))  # the questions and the recipe's paths are the same
WORK = Path(platformdirs.user_cache_dir("alphalloc")) / "reports" / "moelora"
PROMPTS = 64  # test questions that the experts' outputs are compared on
ARMS = ("moelora", "moelora-no-contrast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where data and adapters are kept")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the comparison's recipe"
    )
    parser.add_argument("--no-report", action="store_true", help="leave the files beside this one as they are")
    options = parser.parse_args()
    shared = _shared()
    recipe = shared.load_recipe(HERE / "comparison.yaml", options.work, options.set)
    runs = options.work / "runs"
    found = compare_schedules(recipe, output=runs, progress=shared.say)
    similarity = {
        arm: {str(seed): similarities(recipe, runs / "arms" / arm / f"seed-{seed}") for seed in recipe.seeds}
        for arm in ARMS
    }
    write_atomic(runs / "similarity.json", pretty_json(similarity))
    print(found.arm_table(), "\n\n", found.pair_table(), sep="")
    if options.no_report:
        return
    from moelora_page import draw, page
    from page import draw as draw_accuracy

    shutil.copyfile(runs / "comparison.json", HERE / "comparison.json")
    write_atomic(HERE / "similarity.json", pretty_json(similarity))
    draw_accuracy(found, HERE / "accuracy.svg")
    draw(similarity, HERE / "similarity.svg")
    write_atomic(HERE / "README.md", page(found, similarity))


def similarities(recipe: Any, run: Path) -> list[dict[str, Any]]:
    """Cosines between the experts' outputs on the test questions, a row a linear."""
    from alphalloc.training.data import read_examples
    from alphalloc.training.recipe import Recipe
    from alphalloc.training.runs import load_run
    from alphalloc.training.similarity import expert_similarity
    from alphalloc.training.tokens import prompt_ids, prompt_text

    training = Recipe.load(run / "recipe.yaml")
    model, tokenizer = load_run(training, run / "adapter")
    examples = read_examples(recipe.test.data)[:PROMPTS]
    prompts = prompt_ids([prompt_text(e, training.data.template) for e in examples], tokenizer, training.data.template)
    return [asdict(row) for row in expert_similarity(model, prompts, pad_id=tokenizer.pad_token_id)]


def _shared() -> Any:
    """The other report's run.py, under a name of its own: this file is called the same."""
    spec = importlib.util.spec_from_file_location("schedule_comparison", HERE.parent / "schedule-comparison" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
