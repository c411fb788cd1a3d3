"""The command line: one file a subcommand, and here the border where every outcome becomes an exit code.

Exit codes: 0 done; 1 a fault of this program; 2 bad input, one line ``error: ...`` on stderr; 130 interrupted.
Results go to stdout, progress and notes to stderr. ``ALPHALLOC_DEBUG=1`` shows the traceback of any failure.

Nothing heavy is imported here: ``alphalloc --help`` loads typer and the declarations of the subcommands only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from alphalloc.errors import AlphallocError, SettingsError

__all__ = ["main"]

DONE, INTERNAL, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (default: the process's own) and return the exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (closed by the caller's shell: >&-)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot spell is no failure
    try:
        for argument in arguments:
            _check_text(argument)
        return _run(arguments)
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED, label="")
        _abandon_workers(code)
        return code
    except AlphallocError as exc:
        _show_traceback()
        return _fail(str(exc), BAD_INPUT)
    except Exception as exc:  # the one place where everything is caught
        if _show_traceback():
            return INTERNAL
        fault = f"{type(exc).__name__}: {exc}"
        hint = "this is a fault of alphalloc; please report it with the output of ALPHALLOC_DEBUG=1"
        return _fail(f"{fault} ({hint})", INTERNAL, label="internal error: ")


def _run(arguments: list[str]) -> int:
    import typer
    import typer.main

    from alphalloc.cli.app import build_app

    # typer 0.2x began to carry its own copy of click: the base of its usage errors has no import path that holds on
    # both sides of that change, its subclass has.
    usage_error = typer.BadParameter.__bases__[0]
    try:
        code = typer.main.get_command(build_app())(args=arguments, prog_name="alphalloc", standalone_mode=False)
    except typer.Abort as exc:  # how older typer reports Ctrl-C
        raise KeyboardInterrupt from exc
    except Exception as exc:
        if not isinstance(exc, usage_error):
            raise
        return _fail(_usage_message(exc), BAD_INPUT)
    if code == INTERRUPTED:  # how newer typer reports Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _abandon_workers(code: int) -> None:
    """End the process now if workers still compute: a large matrix takes minutes, and what is finished is stored."""
    import threading

    if any(thread.name.startswith("alphalloc") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _usage_message(exc: Exception) -> str:
    message = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    context = getattr(exc, "ctx", None)
    command = getattr(context, "command_path", "alphalloc")
    message = message.replace("Value error, ", "").rstrip(".")
    return f"{message} (see '{command} --help')"


def _check_text(argument: str) -> None:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise SettingsError(f"the argument {argument!a} is not valid UTF-8; rename the file or quote it") from exc


def _show_traceback() -> bool:
    if os.environ.get("ALPHALLOC_DEBUG", "") in ("", "0"):
        return False
    import traceback

    traceback.print_exc()
    return True


def _fail(message: str, code: int, *, label: str = "error: ") -> int:
    from alphalloc.cli.text import one_line

    print(f"{label}{one_line(message)}", file=sys.stderr, flush=True)
    return code
