"""The place of a tensor by its name: known spellings, the general law, and the pattern that overrides it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alphalloc.checkpoint.naming import Place, find_places, gguf_path, module_path, not_a_linear
from alphalloc.errors import UnknownArchitectureError


def places(*names: str, pattern: str | None = None) -> dict[str, tuple[str, int, str]]:
    """Name -> (stack, layer, role)."""
    found = find_places({name: module_path(name) for name in names}, pattern)
    return {name: (place.stack, place.layer, place.role) for name, place in found.items()}


WORDS = st.text("abcdefghij_", min_size=1, max_size=8)
PREFIX = st.lists(WORDS, min_size=1, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(
    prefix=PREFIX,
    layers=st.integers(2, 12),
    roles=st.lists(PREFIX, min_size=2, max_size=5, unique=True),
    data=st.data(),
)
def test_law_any_spelling_of_repeated_blocks_is_found(
    prefix: tuple[str, ...], layers: int, roles: list[tuple[str, ...]], data: st.DataObject
) -> None:
    outside = data.draw(st.lists(PREFIX, max_size=3).map(lambda paths: [("out", *path) for path in paths]))
    names = {".".join((*prefix, str(i), *role)): (i, role) for i in range(layers) for role in roles}
    extra = {".".join(path) for path in outside} - names.keys()
    found = find_places({name: name for name in data.draw(st.permutations([*names, *extra]))})
    for name, (layer, role) in names.items():
        same_last = [other for other in roles if other[-1] == role[-1]]
        expected = role[-1] if len(same_last) == 1 else ".".join(role)
        assert found[name] == Place(name, "", layer, expected)
    assert all(found[name].layer == -1 for name in extra)


@settings(max_examples=100, deadline=None)
@given(first=PREFIX, second=PREFIX, roles=st.lists(PREFIX, min_size=2, max_size=4, unique=True))
def test_law_two_stacks_get_two_names(
    first: tuple[str, ...], second: tuple[str, ...], roles: list[tuple[str, ...]]
) -> None:
    assume(first != second)
    names = {
        ".".join((*prefix, str(i), *role)): prefix for prefix in (first, second) for i in range(2) for role in roles
    }
    found = find_places({name: name for name in names})
    stacks = {
        prefix: {found[name].stack for name, owner in names.items() if owner == prefix} for prefix in names.values()
    }
    assert all(len(found_names) == 1 for found_names in stacks.values())
    assert stacks[first] != stacks[second]


def test_the_role_is_the_last_name_unless_it_is_ambiguous() -> None:
    found = places(*(f"h.{i}.{role}.weight" for i in range(2) for role in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")))
    assert found["h.0.attn.c_attn.weight"] == ("", 0, "c_attn")
    assert found["h.1.attn.c_proj.weight"] == ("", 1, "attn.c_proj")
    assert found["h.1.mlp.c_proj.weight"] == ("", 1, "mlp.c_proj")


@pytest.mark.parametrize(
    ("prefixes", "stacks"),
    [
        (("encoder.block", "decoder.block"), ("encoder", "decoder")),
        (("model.encoder.layers", "model.decoder.layers"), ("encoder", "decoder")),
        (
            ("language_model.model.layers", "vision_tower.vision_model.encoder.layers"),
            ("language_model", "vision_tower"),
        ),
        (("model.language_model.layers", "model.visual.blocks"), ("language_model", "visual")),
        (("model.layers", "model.mtp.layers"), ("layers", "mtp")),
        (("a.x.layers", "a.y.layers", "b.x.layers"), ("a.x", "a.y", "b.x")),
    ],
)
def test_stacks_are_named_by_what_tells_them_apart(prefixes: tuple[str, ...], stacks: tuple[str, ...]) -> None:
    names = [f"{prefix}.{i}.{role}" for prefix in prefixes for i in range(2) for role in ("q", "k")]
    found = places(*names)
    assert tuple(found[f"{prefix}.0.q"][0] for prefix in prefixes) == stacks


def test_the_outer_index_is_the_block_and_expert_lists_are_not() -> None:
    names = [
        f"model.layers.{i}.mlp.experts.{e}.{role}.weight" for i in range(2) for e in range(9) for role in ("up", "down")
    ]
    found = places(*names, *(f"model.layers.{i}.mlp.shared.up.weight" for i in range(2)))
    assert found["model.layers.1.mlp.experts.7.up.weight"] == ("", 1, "mlp.experts.up")
    assert found["model.layers.1.mlp.experts.7.down.weight"] == ("", 1, "down")
    assert found["model.layers.0.mlp.shared.up.weight"] == ("", 0, "mlp.shared.up")


def test_a_numbered_projector_beside_the_blocks_is_outside() -> None:
    names = [f"model.layers.{i}.{role}.weight" for i in range(4) for role in ("q", "k")]
    found = places(*names, "projector.0.weight", "projector.1.weight", "mlp1.1.weight", "mlp1.3.weight")
    assert {name for name, place in found.items() if place[1] == -1} == {
        "projector.0.weight", "projector.1.weight", "mlp1.1.weight", "mlp1.3.weight",
    }  # fmt: skip


def test_one_block_or_a_gap_is_enough_under_a_usual_word() -> None:
    assert places("layers.0.q.weight", "layers.0.k.weight")["layers.0.k.weight"] == ("", 0, "k")
    assert places("h.3.q", "h.3.k", "h.9.q", "h.9.k")["h.9.q"] == ("", 9, "q")


def test_without_blocks_the_names_are_listed() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"fc1\.weight, fc2\.weight.*layer_pattern"):
        places("fc1.weight", "fc2.weight")
    with pytest.raises(UnknownArchitectureError, match=r"0 matrices; found: none"):
        find_places({})


def test_a_template_overrides_the_rule() -> None:
    names = [f"tower.{t}.unit{i}.{role}.weight" for t in range(2) for i in (0, 5) for role in ("q", "k")]
    found = places(*names, pattern="unit{}.")
    assert found["tower.1.unit5.q.weight"] == ("tower.1.unit", 5, "q") or found["tower.1.unit5.q.weight"][1:] == (
        5,
        "q",
    )
    assert len({place[0] for place in found.values()}) == 2


def test_a_template_matches_whole_names_only() -> None:
    found = places("block.1.q", "myblock.2.q", "block.1x.q", pattern="block.{}.")
    assert [found[name][1] for name in ("block.1.q", "myblock.2.q", "block.1x.q")] == [1, -1, -1]
    assert places("a.7", pattern="a.{}")["a.7"] == ("", 7, "weight")


def test_a_regular_expression_overrides_the_rule() -> None:
    found = places("n2_q", "n2_k", "n13_q", pattern=r"^n(\d+)_")
    assert found["n13_q"] == ("", 13, "_q")
    named = places("enc-3.q", "dec-3.q", pattern=r"(?P<stack>enc|dec)-(?P<layer>\d+)")
    assert named == {"enc-3.q": ("enc", 3, "q"), "dec-3.q": ("dec", 3, "q")}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("layers", "one group"),
        (r"(l)ayers\.(\d+)", "one group"),
        ("(layers)", "block index in its group"),
        ("nowhere.{}.", "matches none"),
    ],
)
def test_a_pattern_that_cannot_work_says_why(pattern: str, message: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=message):
        places("layers.0.q", "layers.1.q", pattern=pattern)


@pytest.mark.parametrize(
    ("name", "architecture", "path"),
    [
        ("blk.3.attn_q.weight", "llama", "model.layers.3.self_attn.q_proj"),
        ("blk.3.ffn_down.weight", "qwen2", "model.layers.3.mlp.down_proj"),
        ("blk.0.attn_qkv.weight", "gpt2", "transformer.h.0.attn.c_attn"),
        ("blk.0.attn_output.weight", "bert", "encoder.layer.0.attention.output.dense"),
        ("blk.0.ssm_in.weight", "mamba", "model.layers.0.ssm_in"),
        ("enc.blk.4.attn_q.weight", "t5", "encoder.block.4.attn_q"),
        ("dec.blk.4.cross_attn_q.weight", "t5", "decoder.block.4.cross_attn_q"),
        ("token_embd.weight", "llama", "model.embed_tokens"),
        ("output.weight", "llama", "lm_head"),
        ("rope_freqs.weight", "llama", "rope_freqs"),
    ],
)
def test_gguf_names_are_spelled_as_hugging_face_does(name: str, architecture: str, path: str) -> None:
    assert gguf_path(name, architecture) == path


def test_module_paths() -> None:
    assert module_path("a.q_proj.weight") == "a.q_proj"
    assert module_path("a.q_proj.base_layer.weight") == "a.q_proj"
    assert module_path("a.self_attn.in_proj_weight") == "a.self_attn.in_proj"
    assert module_path("a.gate") == "a.gate"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("layers.0.q_proj.lora_A.default.weight", "adapter"),
        ("layers.0.alphalloc_molora_adapters.default.experts_a.weight", "adapter"),
        ("layers.0.attn.bias", "2-D bias"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "not a linear layer"),
        ("layers.0.mixer.A_log", "not a linear layer"),
        ("layers.0.q_proj.weight", ""),
        ("layers.0.mlp.dense_h_to_4h.weight", ""),
    ],
)
def test_what_is_no_linear_layer_says_so(name: str, reason: str) -> None:
    assert (reason in not_a_linear(name)) if reason else not_a_linear(name) == ""
