"""The local backend: every result once, in order of completion; failures stop the rest."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from alphalloc.backends import run_local


def test_every_task_is_answered_once():
    results = dict(run_local(lambda task: task * task, range(100), workers=3))
    assert results == {i: i * i for i in range(100)}


def test_no_tasks_no_results():
    assert list(run_local(len, [])) == []


def test_blas_gets_one_thread_and_its_setting_back():
    before = [pool["num_threads"] for pool in threadpool_info()]

    def threads(_: int) -> set[int]:
        np.ones((2, 2)) @ np.ones((2, 2))
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    assert [result for _, result in run_local(threads, [0, 1])] == [{1}, {1}]
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_tasks_overlap():
    barrier = threading.Barrier(2, timeout=10)  # passes only when two tasks run at once
    assert len(list(run_local(lambda _: barrier.wait(), [0, 1], workers=2))) == 2


def test_the_first_failure_stops_the_rest():
    started: list[int] = []

    def work(task: int) -> None:
        started.append(task)
        if task == 0:
            raise ValueError("task 0")
        time.sleep(0.01)  # lets the failure reach the caller before the queue is empty

    with pytest.raises(ValueError, match="task 0"):
        list(run_local(work, range(1000), workers=2))
    assert len(started) < 1000
