"""The plan: batches by smaller side, workers by memory, slabs or a refusal by name; and that analyze follows it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

import alphalloc
from alphalloc.analysis.plan import Speed, cost, make_plan, measure_speed, task_bytes
from alphalloc.backends.local import available_cores
from alphalloc.checkpoint import Checkpoint, WeightMatrix, open_checkpoint
from alphalloc.checkpoint.buffers import FileSlice, View
from alphalloc.errors import AnalysisError, MemoryBudgetError
from alphalloc.spectra import gram

MIB = 2**20
SPEED = Speed(gram=40e9, eigen=10e9)


def planned(*shapes: tuple[int, int], quantized: bool = False, dtype: str = "F16") -> Checkpoint:
    """A checkpoint of these matrices that exists as headers only."""
    matrices = []
    for number, (rows, cols) in enumerate(shapes):
        nbytes = rows * cols * 2
        load = FileSlice("nowhere", 0, (rows, cols), dtype, nbytes) if not quantized else (lambda: None)
        matrices.append(
            WeightMatrix(
                name=f"layers.{number}.weight", module=f"layers.{number}", layer=number, stack="", role="weight",
                shape=(rows, cols), dtype=dtype, nbytes=nbytes, quantized=quantized, source="nowhere", load=load,
            )
        )  # fmt: skip
    return Checkpoint("m", None, None, "sha256:0", "safetensors", None, quantized, tuple(matrices), (), ())


def test_matrices_of_one_smaller_side_share_a_batch_long_ones_first():
    plan = make_plan(planned((64, 64), (512, 64), (64, 700), (900, 300)), memory="8GiB", workers=2)
    assert [(batch.side, batch.positions) for batch in plan.batches] == [(300, (3,)), (64, (2, 1, 0))]
    assert plan.positions == (3, 2, 1, 0)
    assert (len(plan.stages), plan.workers) == (1, 2)


def test_the_memory_of_one_task_by_hand():
    (matrix,) = planned((4096, 11008)).matrices
    slabs = 2 * 32 * MIB
    assert task_bytes(matrix) == 4096 * 11008 * 2 + 2 * 8 * 4096**2 + slabs
    assert task_bytes(matrix, by_slabs=True) == 32 * MIB + 2 * 8 * 4096**2 + slabs
    (packed,) = planned((4096, 11008), quantized=True, dtype="Q4_1").matrices
    assert task_bytes(packed) == 4096 * 11008 * (2 + 4) + 2 * 8 * 4096**2 + slabs
    assert task_bytes(dataclasses.replace(matrix, source="memory")) == 2 * 8 * 4096**2 + slabs
    (small,) = planned((10, 20)).matrices
    assert task_bytes(small) == 400 + 1600 + 2 * 8 * 10 * 20


def test_a_part_of_a_fused_tensor_takes_the_whole_tensor():
    (matrix,) = planned((100, 300)).matrices
    whole = FileSlice("nowhere", 0, (300, 300), "F16", 300 * 300 * 2)
    part = dataclasses.replace(matrix, load=View(whole, (300, 300), rows=slice(0, 100)))
    assert task_bytes(part) - task_bytes(matrix) == 200 * 300 * 2


def test_fewer_workers_where_memory_is_short():
    checkpoint = planned(*[(1024, 1024)] * 8)
    one = task_bytes(checkpoint.matrices[0])
    for held in (1, 2, 3, 7):
        plan = make_plan(checkpoint, memory=held * one + 5, workers=4)
        assert plan.workers == min(held, 4)
        assert plan.peak_bytes == min(held, 4) * one


def test_one_large_matrix_does_not_slow_down_the_small_ones():
    checkpoint = planned((4000, 4000), *[(500, 500)] * 8)
    plan = make_plan(checkpoint, memory="400MiB", workers=4)
    assert [(stage.workers, stage.positions) for stage in plan.stages] == [(1, (0,)), (4, tuple(range(1, 9)))]


def test_what_does_not_fit_whole_goes_through_slabs():
    checkpoint = planned((200_000, 512), (512, 512))
    plan = make_plan(checkpoint, memory="150MiB", workers=1)
    assert [(batch.by_slabs, batch.positions) for batch in plan.batches] == [(True, (0,)), (False, (1,))]
    assert plan.peak_bytes <= 150 * MIB < task_bytes(checkpoint.matrices[0])


@pytest.mark.parametrize("quantized", [False, True])
def test_what_does_not_fit_at_all_is_refused_with_the_bytes_it_needs(quantized):
    checkpoint = planned((64, 64), (4096, 11008), quantized=quantized)
    needed = task_bytes(checkpoint.matrices[1], by_slabs=not quantized)
    with pytest.raises(
        MemoryBudgetError, match=rf"^layers\.1\.weight: 4096 x 11008 .* needs {needed} bytes .*104857600 .1 of 2 "
    ):
        make_plan(checkpoint, memory="100MiB")
    enough = make_plan(checkpoint, memory=f"{-(-needed // MIB)}MiB")  # what the message asks for
    assert enough.peak_bytes <= enough.budget_bytes


sizes = st.tuples(st.sampled_from([8, 64, 300, 512, 1024, 2048]), st.integers(1, 4000))


@given(shapes=st.lists(sizes, min_size=1, max_size=20), mebibytes=st.integers(200, 2000), workers=st.integers(1, 16))
def test_laws_of_every_plan(shapes, mebibytes, workers):
    checkpoint = planned(*shapes)
    plan = make_plan(checkpoint, memory=mebibytes * MIB, workers=workers)
    assert sorted(plan.positions) == list(range(len(shapes)))
    assert plan.peak_bytes <= plan.budget_bytes
    for stage in plan.stages:
        assert 1 <= stage.workers <= workers
        for position in stage.positions:
            slabs = any(batch.by_slabs and position in batch.positions for batch in stage.batches)
            assert task_bytes(checkpoint.matrices[position], by_slabs=slabs) <= stage.worker_bytes
    for batch in plan.batches:
        members = [checkpoint.matrices[position] for position in batch.positions]
        assert {min(matrix.shape) for matrix in members} == {batch.side}
        assert [cost(matrix) for matrix in members] == sorted(map(cost, members), reverse=True)
    longest = [cost(checkpoint.matrices[batch.positions[0]]) for batch in plan.batches]
    assert longest == sorted(longest, reverse=True)
    assert make_plan(checkpoint, memory=mebibytes * MIB, workers=workers) == plan


def test_by_default_it_takes_every_core_and_measures_the_memory():
    plan = make_plan(planned(*[(64, 64)] * 99))
    assert plan.workers == available_cores()
    assert plan.budget_bytes > MIB


def test_estimated_seconds_by_hand():
    plan = make_plan(planned(*[(1000, 2000)] * 4), memory="8GiB", workers=2)
    gram, eigen, read = 4 * 1000**2 * 2000 / 40e9, 4 * 4 / 3 * 1000**3 / 10e9, 4 * 4e6 / 1e9
    assert plan.seconds(SPEED) == pytest.approx((gram + eigen + read + 4 * 3e-3) / 2)
    one = make_plan(planned((1000, 2000)), memory="8GiB", workers=8)
    assert one.seconds(SPEED) == pytest.approx((gram + eigen + read + 4 * 3e-3) / 4)


def test_the_speed_of_this_core_is_measured():
    speed = measure_speed()
    assert 1e7 < speed.eigen < 1e13
    assert 1e7 < speed.gram < 1e13


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(3):
        for role, shape in (("q_proj", (64, 64)), ("up_proj", (3000, 64)), ("down_proj", (64, 3000))):
            tensors[f"model.layers.{layer}.{role}.weight"] = rng.standard_normal(shape).astype(np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_analyze_follows_the_plan(checkpoint_file):
    plan = make_plan(open_checkpoint(checkpoint_file), memory="8GiB", workers=1)
    names = [open_checkpoint(checkpoint_file).matrices[position].name for position in plan.positions]
    seen: list[str] = []
    alphalloc.analyze(checkpoint_file, cache=False, workers=1, progress=lambda state: seen.append(state.name))
    assert seen == names


def test_slabs_and_few_workers_change_no_bit(checkpoint_file, monkeypatch):
    for function in (gram, make_plan):
        monkeypatch.setattr(sys.modules[function.__module__], "SLAB_BYTES", 64 * 8 * 100)
    whole = alphalloc.analyze(checkpoint_file, cache=False)
    matrices = open_checkpoint(checkpoint_file).matrices
    tight = max(task_bytes(matrix, by_slabs=True) for matrix in matrices)
    plan = make_plan(open_checkpoint(checkpoint_file), memory=tight)
    assert any(batch.by_slabs for batch in plan.batches)
    assert alphalloc.analyze(checkpoint_file, cache=False, memory=tight).to_json() == whole.to_json()
    with pytest.raises(MemoryBudgetError, match="needs [0-9]+ bytes"):
        alphalloc.analyze(checkpoint_file, cache=False, memory=tight - 1)


def test_a_budget_that_is_no_size_is_refused(checkpoint_file):
    with pytest.raises(AnalysisError, match="8GiB"):
        alphalloc.analyze(checkpoint_file, cache=False, memory="much")
