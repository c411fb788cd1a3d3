"""What a comparison found: accuracies of arms over seeds, intervals, paired differences, sizes, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from alphalloc.documents import pretty_json
from alphalloc.training.intervals import mean_interval, paired_interval

SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class SeedResult:
    """One training and its evaluation on the test split.

    Attributes:
        seed: of the training.
        accuracy, low, high, correct, total: on the test, with Wilson's 95 % interval.
        seconds: of the training, wall time.
        cpu_seconds: of the training, processor time; None where it was resumed or is not known.
        peak_memory: bytes at most in use while training; None where it cannot be measured.
        train_loss: mean over the steps of the last line of its log; None where none was logged.
        folder: of the run, in the comparison's folder.
        right: a ``1`` or ``0`` a test example, in their order: what paired intervals are made of.
    """

    seed: int
    accuracy: float
    low: float
    high: float
    correct: int
    total: int
    seconds: float
    cpu_seconds: float | None
    peak_memory: int | None
    train_loss: float | None
    folder: str
    right: str


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds; ``interval`` is Student's 95 % interval of the mean over seeds, None for one seed."""

    name: str
    parameters: int
    size_difference: float
    any_size: bool
    schedule: str
    num_experts: tuple[int, ...]
    tuned: Any
    accuracy_mean: float
    interval: list[float] | None
    seconds_mean: float
    peak_memory: int | None
    seeds: tuple[SeedResult, ...]


@dataclass(frozen=True)
class PairResult:
    """``first`` minus ``second``: the mean difference of accuracies on the same seeds and test examples.

    ``interval`` is over seeds: would other seeds say the same? None for one seed. ``question_interval`` is over test
    examples (the mean over seeds of each example's difference): would other examples say the same? Neither covers both.
    """

    first: str
    second: str
    difference: float
    interval: list[float] | None
    question_interval: list[float] | None

    @property
    def resolved(self) -> bool:
        """Whether both intervals exclude zero."""
        return all(found is not None and (found[0] > 0 or found[1] < 0) for found in self._intervals)

    @property
    def _intervals(self) -> tuple[list[float] | None, list[float] | None]:
        return self.interval, self.question_interval


@dataclass(frozen=True)
class Comparison:
    """All of it; ``untrained`` is the model without an adapter on the same test, if it was asked for."""

    task: str
    model: str
    steps: int
    batch_size: int
    test: dict[str, Any]
    untrained: dict[str, Any] | None
    arms: tuple[ArmResult, ...]
    paired: tuple[PairResult, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain JSON types."""
        return {"schema_version": SCHEMA_VERSION, "kind": "ScheduleComparison", **asdict(self)}

    def to_json(self) -> str:
        """Return the document that is written to comparison.json."""
        return pretty_json(self.plain())

    def markdown(self) -> str:
        """Return the tables that are written to README.md."""
        return (
            "\n\n".join([f"# {self.task}", self._summary(), self.arm_table(), self.pair_table(), self._notes()]) + "\n"
        )

    def arm_table(self) -> str:
        """Return one row an arm."""
        rows = [
            "| Arm | Parameters | Mean accuracy | 95 % over seeds | each seed [Wilson 95 %] | s a training | peak MB |",
            "| --- | ---: | ---: | --- | --- | ---: | ---: |",
        ]
        for arm in self.arms:
            each = ", ".join(f"{s.accuracy:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in arm.seeds)
            size = f"{arm.parameters:,} ({arm.size_difference:+.2%})"
            memory = "-" if arm.peak_memory is None else f"{arm.peak_memory / 1e6:,.0f}"
            rows.append(
                f"| {arm.name} | {size} | {arm.accuracy_mean:.3f} | {_limits(arm.interval)} | {each} | "
                f"{arm.seconds_mean:,.0f} | {memory} |"
            )
        if self.untrained is not None:
            found = self.untrained
            rows.append(
                f"| no adapter | 0 | {found['accuracy']:.3f} | | [{found['low']:.3f}, {found['high']:.3f}] | | |"
            )
        return "\n".join(rows)

    def pair_table(self) -> str:
        """Return one row a pair of arms."""
        rows = [
            "| Difference | Accuracy | 95 % over seeds | 95 % over test examples | both exclude 0 |",
            "| --- | ---: | --- | --- | --- |",
        ]
        rows += [
            f"| {pair.first} - {pair.second} | {pair.difference:+.3f} | {_limits(pair.interval, '+')} | "
            f"{_limits(pair.question_interval, '+')} | {'yes' if pair.resolved else 'no'} |"
            for pair in self.paired
        ]
        return "\n".join(rows)

    def _summary(self) -> str:
        return (
            f"{self.model}, {self.steps} steps of {self.batch_size}, {len(self.arms[0].seeds)} seeds an arm, "
            f"{self.test['examples']} test examples, {self.test['mode']}."
        )

    def _notes(self) -> str:
        return "\n".join(f"- {note}" for note in self.notes)


def arm_result(name: str, seeds: Sequence[SeedResult], *, reference: int, parameters: int, **fields: Any) -> ArmResult:
    """Return an arm's means and intervals; ``reference`` is the size that sizes are compared with."""
    accuracy = mean_interval([seed.accuracy for seed in seeds])
    peaks = [seed.peak_memory for seed in seeds if seed.peak_memory is not None]
    return ArmResult(
        name=name,
        parameters=parameters,
        size_difference=parameters / reference - 1,
        accuracy_mean=accuracy.value,
        interval=accuracy.plain(),
        seconds_mean=sum(seed.seconds for seed in seeds) / len(seeds),
        peak_memory=max(peaks) if peaks else None,
        seeds=tuple(seeds),
        **fields,
    )


def paired_results(arms: Sequence[ArmResult]) -> tuple[PairResult, ...]:
    """Return the differences of all pairs of arms, earlier minus later."""
    return tuple(_pair(first, second) for first, second in combinations(arms, 2))


def _pair(first: ArmResult, second: ArmResult) -> PairResult:
    over_seeds = paired_interval([s.accuracy for s in first.seeds], [s.accuracy for s in second.seeds])
    over_questions = paired_interval(_by_question(first), _by_question(second))
    return PairResult(first.name, second.name, over_seeds.value, over_seeds.plain(), over_questions.plain())


def _by_question(arm: ArmResult) -> list[float]:
    """For each test example the share of seeds that answered it rightly."""
    return [column.count("1") / len(column) for column in zip(*(seed.right for seed in arm.seeds), strict=True)]


def _limits(interval: list[float] | None, sign: str = "") -> str:
    return "-" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
