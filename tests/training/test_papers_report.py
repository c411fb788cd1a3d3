"""The papers' tasks of the report schedule-comparison: the folder read and the recipes built. Trained on CUDA alone."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alphalloc.errors import DatasetError, RecipeError

REPORT = Path(__file__).parents[2] / "reports" / "schedule-comparison"


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(REPORT))
    monkeypatch.delitem(sys.modules, "papers", raising=False)
    import papers  # type: ignore[import-not-found,unused-ignore]

    yield papers
    sys.modules.pop("papers", None)


def write(path: Path, answers: list[str]) -> None:
    rows = [
        {"instruction": f"Sentence: {number}\n", "input": "", "output": f"Answer: {answer}.", "answer": answer}
        for number, answer in enumerate(answers)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks: one with a test split, one with a validation split alone, gzipped."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("mrpc.train.jsonl", "mrpc.test.jsonl", "mrpc.validation.jsonl", "cola.train.jsonl.gz"):
        write(folder / name, ["acceptable", "unacceptable"])
    write(folder / "cola.validation.jsonl.gz", ["acceptable"])
    return folder


def test_every_task_has_its_held_out_file(papers: Any, data: Path) -> None:
    assert [(task.name, task.train.name, task.held_out.name) for task in papers.tasks(data)] == [
        ("cola", "cola.train.jsonl.gz", "cola.validation.jsonl.gz"),
        ("mrpc", "mrpc.train.jsonl", "mrpc.test.jsonl"),
    ]


def test_a_folder_of_another_layout_is_refused(papers: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected files NAME\.train\.jsonl"):
        papers.tasks(tmp_path)
    (data / "rte.train.jsonl").write_text('{"sentence": "no instruction"}\n')
    with pytest.raises(SystemExit, match=r"expected rte\.test\.jsonl"):
        papers.tasks(data)
    write(data / "rte.test.jsonl", ["entailment"])
    with pytest.raises(DatasetError, match=r"rte\.train\.jsonl, row 1: expected the fields 'instruction'"):
        papers.tasks(data)


def test_the_recipe_is_the_papers_in_bfloat16(papers: Any, data: Path) -> None:
    cola = papers.tasks(data)[0]
    recipe = papers.papers_recipe(cola, "some/model", ["seeds=[3, 4]"])
    assert (recipe.task, recipe.seeds, recipe.test.overlap, recipe.test.mode) == ("cola", (3, 4), "drop", "generate")
    assert len(papers.papers_recipe(cola, "some/model", []).seeds) == 5
    trainings = [recipe.training(arm, seed=3, output="out") for arm in recipe.arms]
    for training in trainings:
        assert (training.run.dtype, training.run.device) == ("bfloat16", "auto")
        assert (training.optim.epochs, training.optim.batch_size, training.data.cutoff) == (20, 128, 256)
        assert (training.model, training.data.train) == ("some/model", str(cola.train))
        assert training.data.exclude == (str(cola.held_out),)
    assert [training.adapter.method for training in trainings] == ["moe", "moe", "moe", "lora"]
    with pytest.raises(RecipeError, match="did you mean"):
        papers.papers_recipe(cola, "some/model", ["base.optim.epoch=3"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would be measured")
def test_without_cuda_nothing_is_measured(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("platformdirs")
    work = tmp_path / "work"
    before = sorted(REPORT.iterdir())
    command = [sys.executable, str(REPORT / "run.py"), "--data", str(data), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("not measured: ")
    assert not work.exists()
    assert [path for path in sorted(REPORT.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]
