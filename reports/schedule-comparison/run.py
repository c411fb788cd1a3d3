"""Remake this report: ``python reports/schedule-comparison/run.py``; stopped, it goes on where it was.

Trains SmolLM2-135M on TREC questions with four adapters of equal size and three seeds each, evaluates all of them once
on the same test questions, and writes comparison.json, accuracy.svg and README.md beside this file. Models, data and
adapters stay in the user's cache folder.

``--data DIR`` compares the same arms on the papers' tasks in DIR instead (papers.py says which files), in bfloat16 on
CUDA with the papers' epochs and five seeds, and writes papers.md and papers-TASK.json. Without CUDA it says "not
measured" and does nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import papers
import platformdirs
import trec

from alphalloc.documents import write_atomic
from alphalloc.training.compare import compare_schedules
from alphalloc.training.comparison_recipe import ComparisonRecipe
from alphalloc.training.recipe_files import read_yaml
from alphalloc.training.recipe_keys import with_overrides

HERE = Path(__file__).parent
WORK = Path(platformdirs.user_cache_dir("alphalloc")) / "reports" / "schedule-comparison"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where data and adapters are kept")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the comparison's recipe"
    )
    parser.add_argument("--no-report", action="store_true", help="leave the files beside this one as they are")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the papers' tasks: NAME.train.jsonl, NAME.test.jsonl")
    parser.add_argument("--model", default=papers.MODEL, help="the base model for --data")
    options = parser.parse_args()
    if options.data is not None:
        work = options.work / "papers" / Path(options.model).name
        print(papers.measure(options.data, options.model, work, options.set, say) or papers.NOT_MEASURED)
        return
    recipe = load_recipe(HERE / "comparison.yaml", options.work, options.set)
    found = compare_schedules(recipe, output=options.work / "runs", progress=say)
    print(found.arm_table(), "\n\n", found.pair_table(), sep="")
    if options.no_report:
        return
    from page import draw, page

    shutil.copyfile(options.work / "runs" / "comparison.json", HERE / "comparison.json")
    draw(found, HERE / "accuracy.svg")
    write_atomic(HERE / "README.md", page(found))


def load_recipe(path: Path, work: Path, changes: list[str]) -> ComparisonRecipe:
    """The recipe with the paths of this machine."""
    paths = trec.write_splits(work / "data")
    values = with_overrides(read_yaml(path), changes)
    values["base"] = {**values["base"], "model": str(trec.smollm2())}
    values["base"]["data"] = {**values["base"]["data"], "train": str(paths["train"])}
    values["test"] = {**values["test"], "data": str(paths["test"])}
    return ComparisonRecipe.of(values, where=str(path))


def say(line: str) -> None:
    print(line.replace(str(WORK), ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
