"""From examples to token ids: the prompt templates, what is learnt of a text, and what is too long.

A text is tokenised in segments, prompt and answer apart, so that training, likelihoods and generation see the same
tokens for the same prompt; the answer ends with the tokenizer's end token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alphalloc.errors import DatasetError
from alphalloc.training.data import Example

Template = Literal["alpaca", "plain", "chat"]

# The prompt that Alpaca was trained with, and MoLA and AlphaLoRA after it (arXiv 2402.08562, 2410.10054).
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n{input}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"


class Segment(NamedTuple):
    """A piece of text, and whether its tokens are learnt."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class TokenRow:
    """One tokenised example: its ids, and for each whether it is learnt."""

    input_ids: tuple[int, ...]
    learnt: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Tokenised:
    """Tokenised examples and what became of the others.

    Attributes:
        rows: in the order of the examples.
        overlong: examples longer than the cutoff (dropped or cut, as the recipe says).
        dropped: examples that are not among ``rows``: overlong ones, and those with nothing left to learn.
    """

    rows: tuple[TokenRow, ...]
    overlong: int
    dropped: int


def template_for(examples: Sequence[Example], asked: Template) -> Template:
    """Return the template that words ``examples``: ``chat`` where all are conversations, else the one asked for.

    Raises DatasetError for conversations among instructions unless ``chat`` was asked for: one template words all.
    """
    chats = sum(example.messages is not None for example in examples)
    if 0 < chats < len(examples) and asked != "chat":
        raise DatasetError(
            f"{chats} of {len(examples)} examples are conversations, the others instructions; set the template 'chat' "
            "to word all of them by it, or keep one kind"
        )
    return "chat" if chats else asked


def prompt_text(example: Example, template: Template, tokenizer: Any = None) -> str:
    """Return all text before the answer. ``chat`` needs the tokenizer and its template.

    Raises DatasetError when a conversation meets another template than ``chat``, or the tokenizer has none.
    """
    if template == "chat":
        turns = _turns(example)[:-1]
        return _chat_text(tokenizer, turns, answer_follows=True)
    if example.messages is not None:
        raise DatasetError(f"conversations need the template 'chat', got {template!r}")
    if template == "plain":
        return "\n".join(part for part in (example.prompt.strip(), example.input.strip()) if part) + "\n"
    extra = f"### Input:\n{example.input}\n\n" if example.input else ""
    return _ALPACA.format(paired=_PAIRED if example.input else "", prompt=example.prompt, input=extra)


def segments(example: Example, template: Template, tokenizer: Any) -> list[Segment]:
    """Return the example's text in pieces: answers are learnt, the rest is not. End tokens are not in the text."""
    if template != "chat":
        return [Segment(prompt_text(example, template, tokenizer), False), Segment(example.answer, True)]
    turns, found, done = _turns(example), [], ""
    for position, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _chat_text(tokenizer, turns[:position], answer_follows=True)
        after = _chat_text(tokenizer, turns[: position + 1], answer_follows=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DatasetError(
                "the tokenizer's chat template rewrites earlier turns, so that a conversation cannot be cut into "
                "prompts and answers; split the conversations into ones with a single answer"
            )
        found += [Segment(before[len(done) :], False), Segment(after[len(before) :], True)]
        done = after
    return found


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    template: Template = "alpaca",
    cutoff: int | None = 256,
    overlong: Literal["drop", "truncate", "error"] = "drop",
    completion_only: bool = True,
) -> Tokenised:
    """Return the examples as token rows, those longer than ``cutoff`` tokens treated as ``overlong`` says.

    Raises DatasetError for a conversation without the chat template, an overlong example under ``error`` (their number
    is said), and when no row is left.
    """
    pieces = [segments(example, template, tokenizer) for example in examples]
    rows = _rows(pieces, tokenizer, special=template != "chat", completion_only=completion_only)
    long = [i for i, row in enumerate(rows) if cutoff is not None and len(row) > cutoff]
    if long and overlong == "error":
        raise DatasetError(
            f"{len(long)} of {len(rows)} examples are longer than the cutoff of {cutoff} tokens, the longest "
            f"{max(map(len, rows))}; raise data.cutoff, or set data.overlong to drop or truncate"
        )
    if overlong == "truncate":
        rows = [TokenRow(row.input_ids[:cutoff], row.learnt[:cutoff]) for row in rows]
        long_dropped: set[int] = set()
    else:
        long_dropped = set(long)
    kept = tuple(row for i, row in enumerate(rows) if i not in long_dropped and any(row.learnt[1:]))
    if not kept:
        raise DatasetError(
            f"none of {len(rows)} examples is left to train on: {len(long)} are longer than the cutoff of {cutoff} "
            "tokens; raise data.cutoff"
        )
    return Tokenised(kept, overlong=len(long), dropped=len(rows) - len(kept))


def prompt_ids(texts: Iterable[str], tokenizer: Any, template: Template) -> list[list[int]]:
    """Return the ids of prompts as training sees them: with the tokenizer's begin token, except under ``chat``."""
    return _ids(list(texts), tokenizer, special=template != "chat")


def answer_ids(texts: Iterable[str], tokenizer: Any, *, end: bool = True) -> list[list[int]]:
    """Return the ids of answers as training sees them, with the end token unless ``end`` is False."""
    tail = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    return [ids + tail for ids in _ids(list(texts), tokenizer, special=False)]


def _rows(pieces: list[list[Segment]], tokenizer: Any, *, special: bool, completion_only: bool) -> list[TokenRow]:
    texts = [segment.text for example in pieces for segment in example]
    plain = iter(_ids(texts, tokenizer, special=False))
    begin, end = _edges(tokenizer) if special else ([], [])
    rows = []
    for example in pieces:
        ids: list[int] = list(begin)
        learnt = [not completion_only] * len(ids)
        for segment in example:
            found = next(plain)
            ids += found
            learnt += [segment.learnt or not completion_only] * len(found)
        rows.append(TokenRow(tuple(ids + end), tuple(learnt + [True] * len(end))))
    return rows


def _edges(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text (its begin token, if any), and the end token."""
    empty = list(tokenizer("", add_special_tokens=True)["input_ids"])
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return (empty[: -len(end)] if end and empty[-1:] == end else empty), end


def _ids(texts: list[str], tokenizer: Any, *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    begin = _edges(tokenizer)[0] if special else []
    found = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
    return [begin + list(ids) for ids in found]


def _turns(example: Example) -> list[dict[str, str]]:
    if example.messages is not None:
        return [{"role": message.role, "content": message.content} for message in example.messages]
    prompt = "\n".join(part for part in (example.prompt.strip(), example.input.strip()) if part)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": example.answer}]


def _chat_text(tokenizer: Any, turns: list[dict[str, str]], *, answer_follows: bool) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise DatasetError("the tokenizer has no chat template; train on instructions with the template 'alpaca'")
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_follows))
    except Exception as exc:  # a template is a program of its own: jinja errors, or what it raises itself
        raise DatasetError(f"the tokenizer's chat template refuses a conversation: {exc}") from exc
