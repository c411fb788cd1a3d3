"""The queue of analyses as one dictionary a row and no database: what the store has to agree with after every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class NaiveQueue:
    """Analyses in the order in which they came. ``max_queued`` and ``max_attempts`` are those of the store's calls."""

    max_attempts: int
    max_queued: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def submit(self, id: str, content: str, priority: int) -> tuple[str, bool] | None:
        """Id and whether it is new; None when the queue is full. ``id`` is what a new one is to be called."""
        for row in self.rows:
            if row["content"] == content and row["answers"]:
                return row["id"], False
        if sum(row["status"] == "queued" for row in self.rows) >= self.max_queued:
            return None
        self.rows.append(
            {
                "id": id,
                "content": content,
                "answers": True,
                "status": "queued",
                "priority": priority,
                "attempt": 0,
                "owner": None,
                "until": None,
                "lease": None,
                "cancel": False,
                "done": 0,
                "code": None,
            }
        )
        return id, True

    def lapsed(self, row: dict[str, Any], now: float) -> bool:
        """Nobody alive has it."""
        return row["status"] == "running" and (row["until"] < now or row["until"] > now + 2 * row["lease"])

    def claim(self, now: float, owner: str, lease: float) -> str | None:
        """Id of what ``owner`` gets."""
        free = [row for row in self.rows if row["status"] == "queued" or self.lapsed(row, now)]
        for row in free:
            if row["cancel"]:
                self.end(row, "cancelled")
            elif row["attempt"] >= self.max_attempts:
                self.end(row, "failed", "worker-lost")
        left = [row for row in free if row["status"] not in FINAL]
        if not left:
            return None
        row = max(left, key=lambda row: (row["priority"], -self.rows.index(row)))
        row.update(status="running", owner=owner, until=now + lease, lease=lease, attempt=row["attempt"] + 1)
        return str(row["id"])

    def owned(self, id: str, owner: str) -> dict[str, Any] | None:
        """The row if ``owner`` has it."""
        return next((row for row in self.rows if (row["id"], row["owner"]) == (id, owner)), None)

    def renew(self, now: float, id: str, owner: str, lease: float) -> bool:
        """Whether the lease was there."""
        row = self.owned(id, owner)
        if row is not None:
            row.update(until=now + lease, lease=lease)
        return row is not None

    def progress(self, id: str, owner: str, done: int) -> bool:
        """Whether the lease was there."""
        row = self.owned(id, owner)
        if row is not None:
            row["done"] = done
        return row is not None

    def finish(self, id: str, owner: str, status: str, code: str | None) -> bool:
        """Whether the lease was there."""
        row = self.owned(id, owner)
        if row is not None:
            self.end(row, "cancelled" if row["cancel"] else status, None if row["cancel"] else code)
        return row is not None

    def release(self, id: str, owner: str, count: bool) -> bool:
        """Whether the lease was there."""
        row = self.owned(id, owner)
        if row is None:
            return False
        if row["cancel"]:
            self.end(row, "cancelled")
        else:
            row.update(status="queued", owner=None, until=None, attempt=row["attempt"] - (not count))
        return True

    def cancel(self, now: float, id: str) -> None:
        """Cancel what nobody runs, ask what runs to stop."""
        row = next(row for row in self.rows if row["id"] == id)
        if row["status"] == "queued" or self.lapsed(row, now):
            self.end(row, "cancelled")
        elif row["status"] == "running":
            row.update(cancel=True, answers=False)

    def delete(self, id: str) -> bool:
        """Whether it was finished."""
        row = next(row for row in self.rows if row["id"] == id)
        if row["status"] in FINAL:
            self.rows.remove(row)
            return True
        return False

    def end(self, row: dict[str, Any], status: str, code: str | None = None) -> None:
        """The last status of a row."""
        row.update(status=status, owner=None, until=None, code=code)
        if status != "succeeded":
            row["answers"] = False
        if status == "cancelled":
            row["cancel"] = True
