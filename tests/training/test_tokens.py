"""From examples to tokens: templates, what is learnt, what is too long, conversations by the tokenizer's template."""

from __future__ import annotations

from typing import Any

import pytest

from alphalloc.errors import DatasetError
from alphalloc.training.data import Example, Message
from alphalloc.training.tokens import answer_ids, prompt_ids, prompt_text, segments, tokenise

ASK = Example("w3 w4", "w9 w10")
CHAT = Example(
    "",
    "w8",
    messages=(Message("user", "w3"), Message("assistant", "w4 w5"), Message("user", "w6"), Message("assistant", "w8")),
)


def test_prompts_are_worded_by_the_template(tokenizer: Any) -> None:
    assert prompt_text(ASK, "plain") == "w3 w4\n"
    assert prompt_text(Example("w3 ", "a", input=" w4"), "plain") == "w3\nw4\n"
    assert prompt_text(ASK, "alpaca").endswith("### Instruction:\nw3 w4\n\n### Response:\n")
    paired = prompt_text(Example("w3", "a", input="w4"), "alpaca")
    assert "further context. Write a response" in paired
    assert paired.endswith("### Instruction:\nw3\n\n### Input:\nw4\n\n### Response:\n")
    assert prompt_text(ASK, "chat", tokenizer) == "<s> user w3 w4 </s><s> assistant "


def test_only_the_answer_and_the_end_are_learnt(tokenizer: Any) -> None:
    (row,) = tokenise([ASK], tokenizer, template="plain").rows
    assert row.input_ids == (3, 4, 9, 10, tokenizer.eos_token_id)
    assert row.learnt == (False, False, True, True, True)
    (everything,) = tokenise([ASK], tokenizer, template="plain", completion_only=False).rows
    assert everything.input_ids == row.input_ids
    assert all(everything.learnt)


def test_evaluation_sees_the_tokens_of_training(tokenizer: Any) -> None:
    (row,) = tokenise([ASK], tokenizer, template="alpaca").rows
    (prompt,) = prompt_ids([prompt_text(ASK, "alpaca")], tokenizer, "alpaca")
    (answer,) = answer_ids([ASK.answer], tokenizer)
    assert list(row.input_ids) == prompt + answer
    assert sum(row.learnt) == len(answer)
    assert answer_ids([ASK.answer], tokenizer, end=False) == [answer[:-1]]


def test_a_tokenizer_with_a_begin_token_puts_it_before_the_prompt_once(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    own = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    (row,) = tokenise([ASK], own, template="plain").rows
    assert row.input_ids == (1, 3, 4, 9, 10, 2)
    assert row.learnt == (False, False, False, True, True, True)


def test_every_answer_of_a_conversation_is_learnt(tokenizer: Any) -> None:
    texts = segments(CHAT, "chat", tokenizer)
    assert "".join(piece.text for piece in texts) == tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in CHAT.messages or ()], tokenize=False
    )
    assert [piece.text.split() for piece in texts if piece.learnt] == [["w4", "w5", "</s>"], ["w8", "</s>"]]
    (row,) = tokenise([CHAT], tokenizer, template="chat").rows
    assert [i for i, learnt in zip(row.input_ids, row.learnt, strict=True) if learnt] == [4, 5, 2, 8, 2]


def test_long_examples_are_counted_and_dropped_cut_or_refused(tokenizer: Any) -> None:
    long = Example(" ".join(["w3"] * 10), "w9 w10")
    found = tokenise([ASK, long], tokenizer, template="plain", cutoff=8)
    assert (len(found.rows), found.overlong, found.dropped) == (1, 1, 1)
    cut = tokenise([ASK, long], tokenizer, template="plain", cutoff=12, overlong="truncate")
    assert [len(row) for row in cut.rows] == [5, 12]
    assert (cut.overlong, cut.dropped) == (1, 0)
    # Cut at the right end, an example can lose its whole answer: then there is nothing to learn.
    nothing = tokenise([ASK, long], tokenizer, template="plain", cutoff=8, overlong="truncate")
    assert (len(nothing.rows), nothing.overlong, nothing.dropped) == (1, 1, 1)
    with pytest.raises(DatasetError, match="1 of 2 examples are longer than the cutoff of 8 tokens, the longest 13"):
        tokenise([ASK, long], tokenizer, template="plain", cutoff=8, overlong="error")
    with pytest.raises(DatasetError, match="none of 1 examples is left to train on: 1 are longer than the cutoff of 8"):
        tokenise([long], tokenizer, template="plain", cutoff=8)


def test_conversations_that_cannot_be_cut_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DatasetError, match="conversations need the template 'chat', got 'alpaca'"):
        tokenise([CHAT], tokenizer, template="alpaca")
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(DatasetError, match="the tokenizer has no chat template"):
        tokenise([CHAT], bare, template="chat")
    bare.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(DatasetError, match="rewrites earlier turns"):
        tokenise([CHAT], bare, template="chat")
    bare.chat_template = "{{ raise_exception('users first') }}"
    with pytest.raises(DatasetError, match="refuses a conversation: users first"):
        tokenise([CHAT], bare, template="chat")
