"""Reading ahead: the order, the buffers used again, what is not staged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_agreement import Held

from alphalloc.backends.reader import Reader
from alphalloc.checkpoint.values import LowRank


@pytest.fixture
def reader_of():
    readers = []

    def make(matrices, order=None, **options):
        settings = {"pin": False, "threads": 2, "ahead": 3} | options
        readers.append(Reader(matrices, order or range(len(matrices)), **settings))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def test_matrices_come_as_stored_in_any_order_asked_for(reader_of):
    rng = np.random.default_rng(0)
    matrices = [Held(str(i), rng.standard_normal((3 + i, 5)).astype(np.float32)) for i in range(8)]
    reader = reader_of(matrices)
    for position in (0, 1, 2, 1, 0, 7, 3, 4, 5, 6, 6):
        staged = reader.take(position)
        assert np.array_equal(staged.weight.numpy(), matrices[position].weight), position
        reader.give_back(staged)


def test_a_buffer_is_overwritten_only_after_it_was_given_back(reader_of):
    matrices = [Held(str(i), np.full((4, 4), float(i))) for i in range(10)]
    reader = reader_of(matrices, threads=1, ahead=1)
    kept = [reader.take(i) for i in range(5)]
    assert [float(staged.weight[0, 0]) for staged in kept] == [0, 1, 2, 3, 4]
    addresses = {staged.buffer.data_ptr() for staged in kept}
    for staged in kept:
        reader.give_back(staged)
    del kept
    later = [reader.take(i).buffer.data_ptr() for i in range(5, 10)]
    assert addresses & set(later)


def test_no_more_is_read_ahead_than_was_asked_for(reader_of):
    read = []

    class Counted(Held):
        def load(self):
            read.append(self.name)
            return self.weight

    matrices = [Counted(str(i), np.zeros((2, 2))) for i in range(20)]
    reader = reader_of(matrices, threads=1, ahead=4)
    reader.take(0)
    reader._executor.shutdown(wait=True)
    assert read == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones((2, 3), dtype=np.float16), torch.float16),
        (np.ones((2, 3), dtype=np.float32).T, torch.float32),
        (np.ones((2, 3), dtype=np.int8), torch.float64),
        (np.ones((2, 3), dtype=np.longdouble), torch.float64),
    ],
)
def test_dtypes(reader_of, array, dtype):
    weight = reader_of([Held("m", array)]).take(0).weight
    assert (weight.dtype, tuple(weight.shape)) == (dtype, array.shape)
    assert weight.is_contiguous()


def test_bfloat16_keeps_its_bits(reader_of):
    import ml_dtypes

    array = np.random.default_rng(0).standard_normal((5, 7)).astype(ml_dtypes.bfloat16)
    weight = reader_of([Held("m", array)]).take(0).weight
    assert weight.dtype == torch.bfloat16
    assert np.array_equal(weight.float().numpy(), array.astype(np.float32))


def test_what_needs_no_staging_is_not_staged(reader_of):
    tensor = torch.ones(3, 4)
    product = LowRank(np.ones((3, 2)), np.ones((2, 4)))
    reader = reader_of([Held("tensor", tensor), Held("product", product)])
    assert reader.take(0).weight.data_ptr() == tensor.data_ptr()
    staged = reader.take(1)
    assert staged.weight is None
    reader.give_back(staged)
