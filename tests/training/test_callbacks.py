"""Routing over several processes, log files after a resume, scalars and the picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.errors import TrainingError
from alphalloc.moe import LayerRouting, RoutingStatistics
from alphalloc.moe.router import Routing
from alphalloc.training.callbacks import cut_after, merged_routing, routing_line, routing_scalars
from alphalloc.training.picture import draw_routing

NAME = "model.layers.3.self_attn.q_proj"


def recorded(logits: torch.Tensor) -> LayerRouting:
    statistics = RoutingStatistics()
    chosen = logits.topk(2, dim=-1).indices
    statistics.record(NAME, Routing(logits, chosen, torch.ones_like(logits)), None)
    (layer,) = statistics.summary()
    return layer


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(2, 6), st.integers(0, 99))
def test_processes_merge_to_what_one_would_have_recorded(tokens: list[int], experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, experts, generator=generator) for n in tokens]
    whole, found = recorded(torch.cat(parts)), merged_routing([recorded(part) for part in parts])
    assert (found.name, found.num_experts, found.tokens) == (whole.name, whole.num_experts, whole.tokens)
    assert found.dead_experts == whole.dead_experts
    for name in ("load", "probability"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-6)
    for name in ("entropy", "token_entropy", "balance"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-5)


def layer(name: str, load: tuple[float, ...]) -> LayerRouting:
    entropy = -math.fsum(share * math.log(share) for share in load if share) / math.log(len(load))
    dead = tuple(i for i, share in enumerate(load) if share == 0)
    return LayerRouting(name, len(load), 1, 10, load, load, entropy, 1.0, 1.0, dead)


def test_scalars_are_means_over_a_layers_linears() -> None:
    layers = [layer("model.layers.3.q_proj", (0.5, 0.5)), layer("model.layers.3.k_proj", (1.0, 0.0))]
    assert routing_scalars(layers) == {
        "routing/entropy/layer_003": 0.5,
        "routing/dead/layer_003": 1.0,
        "routing/load/layer_003/expert_0": 0.75,
        "routing/load/layer_003/expert_1": 0.25,
    }


def test_lines_of_later_steps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    cut_after(path, 5)
    assert not path.exists()
    path.write_text('{"step": 4}\n{"step": 5}\n{"step": 6}\n{"ste')
    cut_after(path, 5)
    assert path.read_text() == '{"step": 4}\n{"step": 5}\n'
    cut_after(path, 0)
    assert path.read_text() == ""


def test_the_picture_is_drawn_from_the_lines(tmp_path: Path) -> None:
    assert draw_routing(tmp_path) is None
    lines = [
        routing_line(step, layer(f"model.layers.{i}.q_proj", load))
        for step in (1, 9)
        for i, load in enumerate([(0.5, 0.5), (0.2, 0.3, 0.5)])
    ]
    (tmp_path / "routing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    svg = draw_routing(tmp_path)
    assert svg == tmp_path / "routing.svg"
    drawn = svg.read_text()
    assert "load at step 9" in drawn
    assert draw_routing(tmp_path) == svg
    assert svg.read_text() == drawn
    png = draw_routing(tmp_path, tmp_path / "routing.png")
    assert png is not None
    assert png.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "routing.jsonl").write_text("nonsense\n")
    with pytest.raises(TrainingError, match="expected the routing lines of a run"):
        draw_routing(tmp_path)
