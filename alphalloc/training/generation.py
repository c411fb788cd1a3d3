"""Answers by greedy generation, and the patterns that find the answer in the text: how the papers evaluate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from alphalloc.errors import TrainingError
from alphalloc.training.likelihood import TokenIds, pad_left

# As AlphaLoRA's and MoLA's evaluation scripts read answers (arXiv 2410.10054, 2402.08562): a letter for multiple
# choice, words for the GLUE tasks; the third is how the BoolQ data of LLM-Adapters (arXiv 2304.01933) answer.
PATTERNS = {
    "letter": r"[Tt]he answer is ([A-Z])\b",
    "words": r"Answer: ([\w\s]+)",
    "correct": r"the correct answer is (\w+)",
}


@torch.no_grad()
def generate_texts(
    model: Any, tokenizer: Any, prompts: Sequence[TokenIds], *, max_new_tokens: int, stop: Sequence[int] = ()
) -> list[str]:
    """Return the greedy continuation of each prompt, cut at the first end token, without special tokens.

    Prompts are padded on the left: generation goes on from the last position of every row alike.
    """
    device = next(model.parameters()).device
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    ends = sorted({tokenizer.eos_token_id, *stop} - {None})
    found = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def pattern_for(answer: str, label: str) -> str | None:
    """Return the pattern that finds ``label`` in the right answer as the data word it; None when none does.

    Then the whole text is the answer. Raises nothing: a label that no pattern finds is a label by itself.
    """
    for pattern in PATTERNS.values():
        if (found := extract(answer, pattern)) is not None and same(found, label):
            return pattern
    return None


def extract(text: str, pattern: str | None) -> str | None:
    """Return the first group of the first match (the match itself without groups), stripped; None without a match.

    ``pattern`` None: the first line of the text that is not empty.
    """
    if pattern is None:
        return next((line.strip() for line in text.splitlines() if line.strip()), None)
    match = re.search(pattern, text)
    if match is None:
        return None
    return (match[1] if match.re.groups else match[0]).strip()


def check_pattern(pattern: str | None) -> str | None:
    """Return the pattern of that name or ``pattern`` itself. Raises TrainingError when it is no regular expression."""
    if pattern is None or pattern in PATTERNS:
        return None if pattern is None else PATTERNS[pattern]
    try:
        re.compile(pattern)
    except re.error as exc:
        raise TrainingError(
            f"expected a regular expression or one of {', '.join(PATTERNS)}, got {pattern!r}: {exc}"
        ) from exc
    return pattern


def same(found: str, label: str) -> bool:
    """Whether two answers are the same words: case, spaces and a final full stop do not count."""
    return _plain(found) == _plain(label)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()
