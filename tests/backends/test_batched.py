"""The batched backend on the CPU, where every branch of it runs: real models whole, hostile matrices, failures."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
import torch
from device_agreement import Held, assert_same_spectrum, padded, same_fit

from alphalloc.backends.batched import FAST_ESTIMATORS, BatchedResult, _free, assign, run_batched, run_lanes
from alphalloc.backends.lane import How
from alphalloc.checkpoint import open_checkpoint
from alphalloc.checkpoint.values import Difference, LowRank
from alphalloc.errors import AnalysisError, BackendError, DeviceError, SpectrumCheckError
from alphalloc.fits import FITS
from alphalloc.fits.batched import fit_batch
from alphalloc.spectra import esd

CPU = torch.device("cpu")
NAME = "xmin_peak_robust"


def held(count=9, seed=0):
    """Matrices of three smaller sides, both orientations, all dtypes."""
    rng = np.random.default_rng(seed)
    shapes = [(24, 40), (40, 24), (30, 30), (24, 24), (18, 50)]
    dtypes = (np.float16, np.float32, np.float64)
    return [Held(f"m{i}", rng.standard_normal(shapes[i % 5]).astype(dtypes[i % 3]) / (1 + i)) for i in range(count)]


def check_all(found, matrices, estimator=NAME):
    assert sorted(found) == list(range(len(matrices)))
    for position, matrix in enumerate(matrices):
        expected = esd(matrix.load())
        assert_same_spectrum(found[position].spectrum, expected, matrix.name)
        same_fit(found[position].fit, FITS[estimator](expected.eigs), matrix.name)


@pytest.mark.timeout(900)  # half a minute of CPU time, on machines that others use too
@pytest.mark.parametrize("which", ["minilm", "smollm2"])
def test_a_real_model_whole(which, minilm_file, smollm2_file):
    """Every block matrix and every estimator against the numpy path; ties that fell otherwise are listed."""
    matrices = open_checkpoint(minilm_file if which == "minilm" else smollm2_file).matrices
    found = dict(run_batched(matrices, estimator=NAME, device="cpu"))
    assert sorted(found) == list(range(len(matrices)))
    expected = [esd(matrix.load()) for matrix in matrices]
    for position, matrix in enumerate(matrices):
        ours = found[position]
        assert_same_spectrum(ours.spectrum, expected[position], matrix.name)
        assert (ours.spectrum.rows, ours.spectrum.cols, ours.notes) == (*matrix.shape, ())
        assert not ours.spectrum.eigs.flags.writeable
        same_fit(ours.fit, FITS[NAME](expected[position].eigs), matrix.name)
    excepted = []
    for side in {min(matrix.shape) for matrix in matrices}:
        chosen = [position for position, matrix in enumerate(matrices) if min(matrix.shape) == side]
        values = torch.from_numpy(np.array([padded(found[position].spectrum) for position in chosen]))
        zeros = torch.tensor([found[position].spectrum.num_zero for position in chosen])
        for estimator in FITS:
            for position, fit in zip(chosen, fit_batch(estimator, values, zeros), strict=True):
                name = matrices[position].name, estimator
                if same_fit(fit, FITS[estimator](expected[position].eigs), name):
                    excepted.append(name)
    print(f"{which}: another xmin of the same distance in {excepted or 'no matrix'}")
    assert len(excepted) <= 2


def test_every_dtype_shape_and_estimator_gives_what_numpy_gives():
    matrices = held(15)
    for estimator in FITS:
        check_all(dict(run_batched(matrices, estimator=estimator, device="cpu")), matrices, estimator)


def test_the_tail_share_reaches_the_estimator():
    (matrix,) = held(1)
    ((_, found),) = run_batched([matrix], estimator="hill_fraction", hill_fraction=0.5, device="cpu")
    assert found.fit.num_tail == FITS["hill_fraction"](esd(matrix.load()).eigs, 0.5).num_tail == 12


def test_nothing_gives_nothing():
    assert list(run_batched([], estimator=NAME, device="cpu")) == []


def test_hostile_matrices_say_what_the_local_backend_says():
    rng = np.random.default_rng(0)
    bad = rng.standard_normal((24, 40))
    nan, inf = bad.copy(), bad.astype(np.float32)
    nan[3, 4], inf[0, :2] = np.nan, np.inf
    low_rank = LowRank(rng.standard_normal((24, 10)), rng.standard_normal((10, 40)))
    matrices = [
        Held("nan", nan),
        Held("inf", inf),
        Held("beyond float64", np.full((24, 40), 1e200)),
        Held("zero", np.zeros((24, 40), dtype=np.float16)),
        Held("identity", np.eye(24)),
        Held("rank one", np.ones((24, 40))),
        Held("low rank", low_rank),
        Held("difference", Difference(bad, rng.standard_normal((24, 40)))),
        Held("transposed view", np.asfortranarray(bad)),
        Held("one row", np.ones((1, 24))),
        Held("a tensor", torch.from_numpy(bad).to(torch.bfloat16)),
        Held("sound", bad),
    ]
    found = dict(run_batched(matrices, estimator=NAME, device="cpu"))
    assert [found[i].fit.status for i in range(6)] == ["non_finite"] * 3 + ["too_few", "flat_spectrum", "too_few"]
    assert (
        found[0].fit.reason == "expected finite weights, found 1 NaN and 0 infinite values; the checkpoint is damaged"
    )
    assert "found 0 NaN and 2 infinite values" in found[1].fit.reason
    assert "overflow float64" in found[2].fit.reason
    assert [found[i].spectrum for i in range(3)] == [None] * 3
    for position in range(3, len(matrices)):
        expected = esd(matrices[position].load())
        if len(expected.eigs):
            assert_same_spectrum(found[position].spectrum, expected, matrices[position].name)
        same_fit(found[position].fit, FITS[NAME](expected.eigs), matrices[position].name)
    assert found[6].spectrum.num_zero == 14


class Memory:
    """An allocator of so many bytes at once; counts what it refused."""

    def __init__(self, limit):
        self.limit, self.refused, self.granted = limit, [], []

    def __call__(self, size):
        if size > self.limit:
            self.refused.append(size)
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self.granted.append(size)


def test_out_of_memory_halves_the_batch_and_goes_on():
    rng = np.random.default_rng(0)
    matrices = [Held(f"m{i}", rng.standard_normal((20, 30))) for i in range(16)]
    one = 4 * 8 * 20**2
    memory = Memory(2 * one)
    found = dict(run_lanes(matrices, How(NAME), [CPU], [2**30], allocate=memory))
    check_all(found, matrices)
    assert memory.refused == [8 * one, 4 * one]  # then the smaller size is kept for all that follow
    assert memory.granted == [2 * one] * 8
    assert not any(result.notes for result in found.values())


def test_a_matrix_that_does_not_fit_alone_is_computed_by_the_cpu_and_says_so():
    matrices = held(6)
    memory = Memory(4 * 8 * 24**2)  # the 30 x 30 one is too large
    found = dict(run_lanes(matrices, How(NAME), [CPU], [2**30], allocate=memory))
    check_all(found, matrices)
    assert [position for position, result in found.items() if result.notes] == [2]
    assert found[2].notes == ("m2 did not fit on cpu; the CPU computed it",)


def test_what_does_not_fit_alone_is_computed_by_several_threads_beside_the_lane():
    """Two matrices are read at the same time, which the lane's thread alone could not do."""
    together = threading.Barrier(2, timeout=30)

    class Met(Held):
        def load(self):
            together.wait()
            return self.weight

    matrices = [Met(one.name, one.weight) for one in held(4)]
    found = dict(run_lanes(matrices, How(NAME, reader_threads=2), [CPU], [2**30], allocate=Memory(0)))
    assert {result.notes[0].partition(" ")[2] for result in found.values()} == {
        "did not fit on cpu; the CPU computed it"
    }
    check_all(found, [Held(one.name, one.weight) for one in matrices])


def test_what_is_wrong_with_a_matrix_that_did_not_fit_arrives():
    class Damaged(Held):
        def load(self):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(run_lanes([Damaged("x", np.empty((24, 24)))], How(NAME), [CPU], [2**30], allocate=Memory(0)))


class Failing:
    """A card that stops answering at its n-th batch; counts the batches asked of it."""

    def __init__(self, at):
        self.at, self.asked = at, 0

    def __call__(self, size):
        self.asked += 1
        if self.asked >= self.at:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_lost_card_fails_over_to_the_cpu_with_a_warning(at):
    matrices = held(12)
    card = Failing(at)
    found = dict(run_lanes(matrices, How(NAME), [CPU], [2**30], allocate=card))
    check_all(found, matrices)
    assert card.asked == at  # nobody asks a lost card again
    noted = [result.notes for result in found.values() if result.notes]
    assert 1 <= len(noted) <= 12
    assert set(noted) == {("cpu was lost (AcceleratorError: CUDA error: unspecified launch failure); the CPU went on",)}


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUDA error: all CUDA-capable devices are busy"])
def test_a_card_that_refuses_to_begin_fails_over_to_the_cpu(monkeypatch, message):
    """What a full or a busy card says to the first call that needs its context."""
    refused = []

    def busy(device):
        if not refused:
            refused.append(device)
            raise torch.AcceleratorError(message)

    matrices = held(6)
    monkeypatch.setattr(torch.cpu, "set_device", busy, raising=False)
    found = dict(run_lanes(matrices, How(NAME), [CPU], [0]))
    check_all(found, matrices)
    assert {result.notes for result in found.values()} == {
        (f"cpu was lost (AcceleratorError: {message}); the CPU went on",)
    }


def test_a_card_that_does_not_say_what_is_free_has_nothing(monkeypatch):
    def refuse(device):
        raise torch.AcceleratorError("CUDA error: out of memory")

    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert _free(torch, card) == 0
    matrices = [Held(str(i), np.empty((64, 64))) for i in range(40)]
    batches = [batch for lane in assign(matrices, [0, 2**30]) for batch in lane]
    assert max(len(batch.positions) for batch in batches) == 10  # the other card's batches stay as large


def test_what_torch_holds_for_its_next_use_is_free(monkeypatch):
    for name, found in (("mem_get_info", (1000, 5000)), ("memory_reserved", 700), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert _free(torch, torch.device("cuda", 0)) == 1200


def test_weights_that_were_lost_with_the_card_are_an_error_and_no_endless_loop():
    class OnTheCard(Held):
        def load(self):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    matrices = [*held(4), OnTheCard("x", np.empty((24, 24)))]
    with pytest.raises(
        BackendError, match=r"the CPU cannot go on: AcceleratorError: CUDA error.*read them from a file"
    ):
        list(run_lanes(matrices, How(NAME), [CPU], [2**30]))


def test_one_of_two_cards_is_lost_and_the_other_goes_on():
    matrices = held(15)
    found = dict(run_lanes(matrices, How(NAME), [CPU, CPU], [2**30, 2**30], allocate=Failing(4)))
    check_all(found, matrices)


def test_several_devices_share_the_work():
    matrices = held(15)
    lanes = assign(matrices, [2**30, 2**30, 2**30])
    positions = [position for lane in lanes for batch in lane for position in batch.positions]
    assert sorted(positions) == list(range(15))
    assert all(lanes)
    check_all(dict(run_lanes(matrices, How(NAME), [CPU] * 3, [2**30] * 3)), matrices)


def test_batches_have_one_smaller_side_and_fit_into_memory():
    matrices = [Held(str(i), np.empty((64, 64 + i % 3))) for i in range(40)] + held(5)
    for free, most in ((2**30, 20), (145 * 2**20, 31), (1, 1)):
        (batches,) = assign(matrices, [free])
        for batch in batches:
            assert {min(matrices[position].shape) for position in batch.positions} == {batch.side}
            assert len(batch.positions) <= most
        assert [batch.side for batch in batches] == sorted((batch.side for batch in batches), reverse=True)


def test_a_broken_solver_is_blamed_by_the_name_of_the_matrix(monkeypatch):
    class Lying:
        def __call__(self, grams, **options):
            values = torch.linalg.eigvalsh(grams)
            values[(grams[:, 0, 0] == marked).nonzero()[:, 0], -1] *= 1 + 1e-6
            return values

    matrices = [Held(f"m{i}", np.random.default_rng(i).standard_normal((20, 30))) for i in range(8)]
    from alphalloc.spectra.batched import add_gram

    gram = torch.zeros(20, 20, dtype=torch.float64)
    add_gram(gram, torch.from_numpy(matrices[5].load()))
    marked = gram[0, 0]
    monkeypatch.setattr("alphalloc.backends.lane.symmetric_eigenvalues", Lying())
    with pytest.raises(SpectrumCheckError, match=r"^m5: the trace identity .* is broken"):
        list(run_lanes(matrices, How(NAME), [CPU], [2**30]))


def test_a_batched_solver_that_contradicts_itself_is_not_asked_again_for_that_batch(monkeypatch):
    """As cuSOLVER's did: wrong on one matrix of a stack, right on each alone."""

    def lying(grams):
        values = eigvalsh(grams)
        if grams.ndim == 3:
            values[1, -1] *= 1 + 1e-6
        return values

    matrices = [Held(f"m{i}", np.random.default_rng(i).standard_normal((20, 30))) for i in range(8)]
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lying)
    found = dict(run_lanes(matrices, How(NAME, solver="batched"), [CPU], [2**30]))
    check_all(found, matrices)
    for result in found.values():
        (note,) = result.notes
        assert re.fullmatch(r"m[15]: the trace identity .* is broken: .*its batch were computed matrix by matrix", note)


def test_what_reading_raises_arrives():
    class Damaged(Held):
        def load(self):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(run_batched([*held(4), Damaged("x", np.empty((24, 24)))], estimator=NAME, device="cpu"))


def test_a_caller_that_leaves_stops_the_reading():
    read = []

    class Counted(Held):
        def load(self):
            read.append(self.name)
            return self.weight

    matrices = [Counted(str(i), np.random.default_rng(i).standard_normal((150, 200))) for i in range(60)]
    results = run_batched(matrices, estimator=NAME, device="cpu", free_bytes=2**20)
    next(results)
    results.close()
    for thread in [t for t in threading.enumerate() if t.name == "alphalloc-cpu"]:
        thread.join(timeout=60)
    assert len(read) < 60


def test_fast_precision_stays_within_its_measured_bound(minilm_file):
    matrices = open_checkpoint(minilm_file).matrices[:12]
    found = dict(run_batched(matrices, estimator=NAME, device="cpu", precision="fast"))
    for position, matrix in enumerate(matrices):
        exact, fast = esd(matrix.load()), found[position].spectrum
        values, zeros = torch.from_numpy(padded(fast))[None], torch.tensor([fast.num_zero])
        assert found[position].fit == fit_batch(NAME, values, zeros)[0]
        for estimator in FAST_ESTIMATORS:
            (fit,) = fit_batch(estimator, values, zeros)
            assert fit.alpha == pytest.approx(FITS[estimator](exact.eigs).alpha, rel=1e-4), (matrix.name, estimator)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "xmin_peek"}, AnalysisError, "no estimator named 'xmin_peek'"),
        ({"hill_fraction": 0.0, "estimator": "hill_fraction"}, AnalysisError, r"a fraction in \(0, 1\], found 0\.0"),
        ({"precision": "half"}, AnalysisError, "precision 'full' or 'fast', found 'half'"),
        (
            {"precision": "fast", "estimator": "xmin_peak_reference"},
            AnalysisError,
            "'fast' does not serve xmin_peak_reference",
        ),
        ({"device": "tpu"}, DeviceError, "'cpu', 'cuda' or 'cuda:N', found 'tpu'"),
        ({"device": "cuda:x"}, DeviceError, "found 'cuda:x'"),
        ({"device": "cuda:99"}, DeviceError, "expected a CUDA device for 'cuda:99', torch sees"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(options, error, message):
    with pytest.raises(error, match=message):
        run_batched([], **{"estimator": NAME, "device": "cpu"} | options)


def test_results_are_values():
    first = next(iter(run_batched(held(1), estimator=NAME, device="cpu")))[1]
    assert isinstance(first, BatchedResult)
    with pytest.raises(AttributeError):
        first.notes = ("x",)
