"""How long an analysis takes and what it costs: shapes of models, speeds of machines, one formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

HOUR = 3600.0
TASKS_A_CARD, LARGEST_TASK = 2, 512  # of GPU tasks on Ray, as analysis.dispatch cuts them


@dataclass(frozen=True)
class Model:
    """Block matrices as (rows, cols, how many); ``bytes_each`` a stored weight."""

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    bytes_each: float

    @property
    def parameters(self) -> float:
        return sum(float(rows) * cols * count for rows, cols, count in self.shapes)

    @property
    def matrices(self) -> int:
        return sum(count for _, _, count in self.shapes)

    @property
    def stored_bytes(self) -> float:
        return self.parameters * self.bytes_each

    @property
    def gram_flop(self) -> float:
        """nmin²·nmax: one triangle, a multiplication and an addition each."""
        return sum(count * float(min(r, c)) ** 2 * max(r, c) for r, c, count in self.shapes)

    @property
    def eigen_flop(self) -> float:
        """4/3·nmin³: the reduction to tridiagonal form."""
        return sum(count * 4 / 3 * float(min(r, c)) ** 3 for r, c, count in self.shapes)

    @property
    def largest(self) -> Model:
        """The one matrix that takes longest."""
        rows, cols, _ = max(self.shapes, key=lambda s: min(s[:2]) ** 2 * max(s[:2]) + 4 / 3 * min(s[:2]) ** 3)
        return replace(self, shapes=((rows, cols, 1),))


@dataclass(frozen=True)
class Machine:
    """``hosts`` with ``workers`` each (cores or cards); speeds of one worker in flop/s, bandwidths in bytes/s.

    ``storage`` is what a host reads from its own disk, ``network`` what a host gets from a shared store and
    ``store`` what that store gives to all; one host reads its disk, several read the store. ``copy``: host to card.
    ``start``: seconds until a new process has its card; Ray, which several hosts need, starts one for every GPU task.
    """

    name: str
    hosts: int
    workers: int
    gram: float
    eigen: float
    fit: float
    storage: float
    network: float
    store: float
    copy: float | None
    price: float
    start: float = 0.0


def dense(name: str, layers: int, hidden: int, inner: int, kv: int, bytes_each: float = 2.0) -> Model:
    """A dense decoder: q, o hidden²; k, v kv x hidden; gate, up, down of ``inner``."""
    shapes = (
        (hidden, hidden, 2 * layers),
        (kv, hidden, 2 * layers),
        (inner, hidden, 2 * layers),
        (hidden, inner, layers),
    )
    return Model(name, shapes, bytes_each)


MODELS = (
    dense("LLaMA-2-7B", 32, 4096, 11008, 4096),
    dense("Llama-3-70B", 80, 8192, 28672, 1024),
    dense("Llama-3.1-405B", 126, 16384, 53248, 1024),
    # Kimi K2: 61 layers, 60 of them with 384 routed experts and a shared one; latent attention; stored in fp8.
    Model(
        "1T MoE (Kimi K2)",
        (
            (2048, 7168, 60 * 385 * 2),
            (7168, 2048, 60 * 385),
            (18432, 7168, 2),
            (7168, 18432, 1),
            (1536, 7168, 61),
            (12288, 1536, 61),
            (576, 7168, 61),
            (16384, 512, 61),
            (7168, 8192, 61),
        ),
        1.0,
    ),
)


def stage_seconds(model: Model, machine: Machine) -> dict[str, float]:
    """Seconds of every stage if it alone held the machine up."""
    workers = machine.hosts * machine.workers
    from_store = machine.hosts > 1
    reading = min(machine.hosts * machine.network, machine.store) if from_store else machine.storage
    compute = model.gram_flop / machine.gram, model.eigen_flop / machine.eigen, model.matrices * machine.fit
    longest = model.largest.gram_flop / machine.gram + model.largest.eigen_flop / machine.eigen
    found = {
        "network" if from_store else "disk": model.stored_bytes / reading,
        "Gram": compute[0] / workers,
        "eigenvalues": compute[1] / workers,
        "fit": compute[2] / workers,
        "largest matrix": longest,
    }
    if machine.copy and from_store:
        found["starts"] = machine.start * max(TASKS_A_CARD, -(-model.matrices // (LARGEST_TASK * workers)))
    return found | ({"copy": model.stored_bytes / (workers * machine.copy)} if machine.copy else {})


def total(model: Model, machine: Machine) -> tuple[float, str, float]:
    """(seconds, what holds it up, cost): reading, copying and computing overlap; starts and compute stages add."""
    stages = stage_seconds(model, machine)
    starts = stages.pop("starts", 0.0)
    computing = {name: stages[name] for name in ("Gram", "eigenvalues", "fit")}
    others = {name: seconds for name, seconds in stages.items() if name not in computing}
    slowest = max(others, key=lambda name: others[name])
    if sum(computing.values()) >= others[slowest]:
        seconds, why = sum(computing.values()), max(computing, key=lambda name: computing[name])
    else:
        seconds, why = others[slowest], slowest
    seconds, why = seconds + starts, "starts" if starts > seconds else why
    return seconds, why, seconds / HOUR * machine.hosts * machine.price
