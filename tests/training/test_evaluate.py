"""Accuracy of a model: by likelihood and by generation, task by task, and as lm-eval measures it."""

from __future__ import annotations

import json

import pytest
import torch

from alphalloc.errors import DatasetError
from alphalloc.training.data import Example
from alphalloc.training.evaluate import Prediction, evaluate, summarise

WORDS = ("w5", "w6 w7", "w8")


@pytest.fixture(scope="module")
def model(tiny):
    import peft

    return peft.get_peft_model(tiny.llama(), tiny.moe_config())


@pytest.fixture(scope="module")
def examples(tiny):
    answers = [WORDS[i % 3] for i in range(12)]
    return [
        Example(prompt=text, answer=answer, label=answer, options=WORDS, task="even" if i % 2 == 0 else "odd")
        for i, (text, answer) in enumerate(zip(tiny.sentences(12), answers, strict=True))
    ]


@torch.no_grad()
def naive_scores(model, tokenizer, example, template_end="\n"):
    """Each option's log-likelihood from its own forward pass, in a loop."""
    prompt = tokenizer(example.prompt + template_end)["input_ids"]
    scores = []
    for option in example.options:
        ids = tokenizer(option)["input_ids"]
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)))
    return scores


@pytest.mark.parametrize(
    ("normalisation", "divisors"), [("sum", (1, 1, 1)), ("token", (1, 2, 1)), ("character", (2, 5, 2))]
)
def test_likelihood_agrees_with_a_loop_over_examples(model, tokenizer, examples, normalisation, divisors):
    model.train()
    found = evaluate(model, tokenizer, examples, template="plain", batch_size=5, normalisation=normalisation)
    assert model.training
    model.eval()
    right = 0
    for example, prediction in zip(examples, found.predictions, strict=True):
        scores = [s / d for s, d in zip(naive_scores(model, tokenizer, example), divisors, strict=True)]
        assert prediction.scores == pytest.approx(scores, abs=2e-4)
        assert prediction.predicted == WORDS[max(range(3), key=scores.__getitem__)]
        right += prediction.predicted == example.answer
    assert (found.correct, found.total) == (right, 12)
    assert [(score.task, score.total) for score in found.per_task] == [("even", 6), ("odd", 6)]
    assert sum(score.correct for score in found.per_task) == right


def test_batches_and_order_change_nothing(model, tokenizer, examples):
    single = evaluate(model, tokenizer, examples, template="plain", batch_size=1)
    backwards = evaluate(model, tokenizer, examples[::-1], template="plain", batch_size=12)
    assert [p.predicted for p in single.predictions] == [p.predicted for p in backwards.predictions][::-1]


def test_generation_is_read_by_pattern(model, tokenizer, examples):
    """The label is made what the model says, in the wording of the data, so that a right answer is known."""
    from alphalloc.training.generation import generate_texts

    model.eval()
    prompt = tokenizer(examples[0].prompt + "\n")["input_ids"]
    text = generate_texts(model, tokenizer, [prompt], max_new_tokens=4)[0]
    first, second = text.split()[:2]
    asked = [Example(prompt=examples[0].prompt, answer="x", label=second, task="t")] * 2
    found = evaluate(
        model, tokenizer, asked, mode="generate", template="plain", pattern=rf"{first} (\w+)", max_new_tokens=4
    )
    assert (found.accuracy, found.unanswered, found.mode) == (1.0, 0, "generate")
    assert found.predictions[0].text == text
    missed = evaluate(model, tokenizer, asked, mode="generate", template="plain", pattern="never", max_new_tokens=4)
    assert (missed.correct, missed.unanswered) == (0, 2)


def test_right_answers_may_be_known_by_their_label(model, tokenizer):
    example = Example(prompt="w9 w10", answer="w11 w5", label="w5", task="t")
    found = evaluate(model, tokenizer, [example], template="plain", options=WORDS)
    assert found.predictions[0].expected == "w5"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("w9", "w5", "w5"), "expected two options or more"),
        (Example("w9", "w5", "w5", options=("w5",)), "expected two options or more"),
        (Example("w9", "w5", "w5", options=("w6", "w7")), "expected its answer 'w5' among the options"),
    ],
)
def test_examples_without_a_choice_are_refused(model, tokenizer, example, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(model, tokenizer, [example])


def test_no_examples_are_refused(model, tokenizer):
    with pytest.raises(DatasetError, match="expected examples to evaluate on"):
        evaluate(model, tokenizer, [])


def test_the_document_holds_every_task_and_prediction():
    found = summarise(
        [Prediction(1, "b", "x", None, False), Prediction(0, "a", "x", "x", True)], mode="generate", normalisation=None
    )
    document = json.loads(found.to_json())
    assert document["kind"] == "Evaluation"
    assert [task["accuracy"] for task in document["per_task"]] == [1.0, 0.0]
    assert [p["index"] for p in document["predictions"]] == [0, 1]
    assert document["unanswered"] == 1
    assert "predictions" not in found.plain(predictions=False)


def test_lm_eval_measures_the_same_through_the_adapter(model, tokenizer, examples, tmp_path):
    """A real task of EleutherAI's harness, defined by a local YAML file over local JSON."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [{"question": e.prompt, "choices": list(WORDS), "answer": WORDS.index(e.answer)} for e in examples]
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_words.yaml").write_text(
        f"""
task: tiny_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\n"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
    )
    model.eval()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=64)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    report = lm_eval.simple_evaluate(
        model=harness, tasks=["tiny_words"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    ours = evaluate(model, tokenizer, examples, template="plain")
    assert report["results"]["tiny_words"]["acc,none"] == pytest.approx(ours.accuracy)
    samples = sorted(report["samples"]["tiny_words"], key=lambda sample: sample["doc_id"])
    for sample, prediction in zip(samples, ours.predictions, strict=True):
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert prediction.scores == pytest.approx(theirs, abs=2e-4)
