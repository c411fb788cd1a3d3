"""What a running analysis reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State after one finished matrix: matrices and bytes of the checkpoint done and in all, and its tensor name."""

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    name: str
