"""The choice of backend and device: what follows from what was asked, and what contradicts itself."""

from __future__ import annotations

import sys

import pytest
import torch

from alphalloc.analysis.where import Where, choose, sees_cuda
from alphalloc.errors import AnalysisError, DeviceError, MissingExtraError
from alphalloc.spectra import FarmsSettings


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("auto", "cpu"), ("local", "cpu")),
        (("local", "auto"), ("local", "cpu")),
        (("batched", "cpu"), ("batched", "cpu")),
        (("ray", "auto"), ("ray", "cpu")),
        (("ray", "cuda"), ("ray", "cuda")),  # the cards are the cluster's, not this machine's
        (("auto", "mps"), ("local", "cpu")),
    ],
)
def test_what_follows(asked, found):
    where = choose(*asked, "full", None, None)
    assert (where.backend, where.device) == found
    assert bool(where.notes) == (asked[1] == "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without a card")
def test_without_a_card_auto_is_the_local_backend():
    assert choose("auto", "auto", "full", None, None) == Where("local", "cpu")
    assert choose("batched", "auto", "full", None, None) == Where("batched", "cpu")
    with pytest.raises(DeviceError, match="torch sees none; use device='cpu'"):
        choose("auto", "cuda", "full", None, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_a_card_auto_is_the_batched_backend():
    assert choose("auto", "auto", "full", None, None) == Where("batched", "cuda")
    assert choose("auto", "auto", "full", None, FarmsSettings()) == Where("local", "cpu")
    with pytest.raises(DeviceError, match="computes on the CPU"):
        choose("local", "cuda", "full", None, None)


def test_a_card_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("alphalloc.analysis.where.sees_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose("auto", "cuda:1", "full", None, None) == Where("batched", "cuda:1")
    with pytest.raises(DeviceError, match=r"device 'cuda:2', torch sees 2"):
        choose("auto", "cuda:2", "full", None, None)


def test_batches_need_torch_and_ray_only_on_its_workers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for device in ("auto", "cpu"):
        with pytest.raises(MissingExtraError, match=r"pip install 'alphalloc\[torch\]'"):
            choose("batched", device, "full", None, None)
    assert choose("auto", "auto", "full", None, None) == Where("local", "cpu")
    monkeypatch.setattr(sys, "path", [])  # where installed packages are looked up
    assert choose("ray", "cuda", "full", None, None).variant == "batched cuda torch none"


def test_a_card_is_looked_for_as_torch_does():
    assert sees_cuda() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (("dask", "cpu", "full", None, None), AnalysisError, "found 'dask'"),
        (("auto", "cuda:x", "full", None, None), DeviceError, "found 'cuda:x'"),
        (("auto", "cpu", "half", None, None), AnalysisError, "found 'half'"),
        (("local", "cpu", "full", "head:6379", None), AnalysisError, "without backend='ray'"),
        (("local", "cpu", "fast", None, None), AnalysisError, "belongs to batches"),
        (("ray", "cpu", "fast", None, None), AnalysisError, "belongs to batches"),
        (("ray", "cuda:1", "full", None, None), DeviceError, "a card of its own"),
        (("batched", "cpu", "full", None, FarmsSettings()), AnalysisError, "FARMS windows"),
        (("ray", "cuda", "full", None, FarmsSettings()), AnalysisError, "FARMS windows"),
    ],
)
def test_contradictions_are_named(asked, error, words):
    with pytest.raises(error, match=words):
        choose(*asked)


def test_only_what_differs_in_its_last_digits_is_cached_apart():
    assert choose("ray", "cpu", "full", None, None).variant == ""
    assert choose("local", "cpu", "full", None, None).variant == ""
    assert choose("batched", "cpu", "full", None, None).variant == f"batched cpu torch {torch.__version__}"
    assert choose("ray", "cuda", "full", None, None).variant == f"batched cuda torch {torch.__version__}"


def test_a_document_names_an_approximation_and_nothing_else():
    assert choose("batched", "cpu", "fast", None, None).settings() == {"precision": "fast"}
    assert choose("batched", "cpu", "full", None, None).settings() == {}
