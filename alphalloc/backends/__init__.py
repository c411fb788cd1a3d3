"""Where matrices are computed. A backend takes a function and its tasks and yields results as they finish."""

from alphalloc.backends.local import run_local

__all__ = ["run_local"]
