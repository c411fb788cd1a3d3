"""Files that a command writes: checked before the work starts, written atomically after all of it has succeeded."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from alphalloc.documents import write_atomic
from alphalloc.errors import OutputError


def check_outputs(outputs: Mapping[str, Path | None], *, inputs: Iterable[str | Path] = ()) -> None:
    """Raise OutputError if one of ``outputs`` (option -> path) cannot be written or would destroy an input.

    Checked are: two options with one path, a path that is read by the same command, a target that is not a regular
    file (a folder, a device), a parent that is no folder or may not be written to.
    """
    taken = {Path(os.path.realpath(path)): f"the input {path}" for path in inputs}  # realpath bears loops of links
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            target = path.resolve()
            if target in taken:
                raise OutputError(f"{option} {path} would overwrite {taken[target]}; choose another file")
            _check_writable(option, path, target)
        except (OSError, RuntimeError) as exc:  # a name that is too long, a loop of symbolic links
            raise OutputError(f"{option} {path}: not a usable path: {exc}") from exc
        taken[target] = f"what {option} writes"


def write_outputs(documents: Mapping[Path, str]) -> None:
    """Write each text to its path. OutputError when the disk refuses; a file is then old or new, never half."""
    for path, text in documents.items():
        try:
            write_atomic(path, text)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def print_json(text: str) -> None:
    """Write ``text`` to stdout as UTF-8 whatever the locale says: JSON has no other encoding."""
    print_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def print_text(text: str, *, encoding: str | None = None) -> None:
    """Write ``text`` to stdout; a reader that has gone away (``| head``) ends the output, it is not an error."""
    try:
        if encoding is None:
            sys.stdout.write(text)
        else:
            sys.stdout.flush()
            # A lone surrogate becomes its JSON escape.
            sys.stdout.buffer.write(text.encode(encoding, "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"stdout cannot be written: {exc.strerror or exc}") from exc


def _check_writable(option: str, path: Path, target: Path) -> None:
    # A rename over /dev/stdout would replace the device itself, so anything there is refused, whatever it points to.
    special = any(str(parent) in ("/dev", "/proc", "/sys") for parent in path.absolute().parents)
    if special or (path.exists() and not path.is_file()):
        raise OutputError(f"{option} {path}: not a regular file; give a file name (or --json to print)")
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"{option} {path}: cannot be written, {folder} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):  # asks the disk, not the permission bits, which mean nothing to root
            pass
    except OSError as exc:
        raise OutputError(f"{option} {path}: cannot be written, {folder}: {exc.strerror or exc}") from exc
