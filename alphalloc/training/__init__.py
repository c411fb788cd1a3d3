"""The reference trainer: a recipe in, a trained adapter with its record out."""

from __future__ import annotations
