"""The README's list of files: one line a file, the first sentence of its docstring.

python tests/support/file_list.py     # writes the list into README.md
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- files -->\n", "<!-- end of files -->"


def first_sentence(path: Path) -> str:
    """The docstring up to its first full stop, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.\d])(?<!al)(?<!app)\. |\.$", text)[0]  # "et al. ", "app. B" end no sentence
    return re.sub(r":\w+:`|``", "`", sentence)


def file_list() -> str:
    """One table row for every Python file of both packages, in the order of the folders."""
    rows = []
    for folder in ("alphalloc", "service"):
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda p: (p.parent, p.name != "__init__.py", p.name)):
            rows.append(f"| `{path.relative_to(ROOT)}` | {first_sentence(path).replace('|', '/')} |")
    return "| File | What it is |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def shown(readme: str) -> str:
    """The list as the README has it."""
    return readme.split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    page = ROOT / "README.md"
    text = page.read_text()
    page.write_text(text.replace(shown(text), file_list()))
