"""``python -m alphalloc`` is the command line."""

from __future__ import annotations

from alphalloc.cli import main

if __name__ == "__main__":  # spawned worker processes import this file again and must not start a second run
    raise SystemExit(main())
