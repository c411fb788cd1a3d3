"""The README.md of an adapter folder: says how to load it, since PEFT alone does not know the method."""

from __future__ import annotations

from pathlib import Path

HEADING = "## How to load this adapter"

_SECTION = """{heading}

This is a MoE-LoRA adapter made by alphalloc: PEFT needs one more import.

```bash
pip install 'alphalloc[peft]'
```

```python
import alphalloc.peft  # registers the method; without it PEFT raises KeyError: 'ALPHALLOC_MOLORA'
from peft import PeftModel
from transformers import AutoModelForCausalLM  # or the class the adapter was trained with

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, "path/of/this/folder")
```
"""


def write_loading_card(folder: Path, base_model: str | None) -> None:
    """Put the loading section into ``folder/README.md``, below the front matter PEFT wrote, once."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else "---\nlibrary_name: peft\n---\n"
    if HEADING in text:
        return
    section = _SECTION.format(heading=HEADING, base=base_model or "the base model")
    front, body = _split_front_matter(text)
    path.write_text(f"{front}\n{section}\n{body.lstrip()}", encoding="utf-8")


def _split_front_matter(text: str) -> tuple[str, str]:
    """(YAML block with its fences, the rest); an empty first part when there is none."""
    if not text.startswith("---\n"):
        return "", text
    end = text.find("\n---", 4)
    if end < 0:
        return "", text
    stop = text.find("\n", end + 1)
    return (text, "") if stop < 0 else (text[: stop + 1], text[stop + 1 :])
