"""ModelAlphas: layer means by hand, the document's round trip, damaged documents."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES

from alphalloc import ModelAlphas, allocate
from alphalloc.allocation.confidence import uncertain_alphas
from alphalloc.allocation.schedule import AnalysisRef, CreatedBy, ModelRef
from alphalloc.alphas import EsdHistogram, MatrixAlpha, fill_median, layer_alphas
from alphalloc.errors import DocumentError, LayerWithoutAlphaError, SchemaVersionError


def matrix(layer: int, role: str, alpha: float | None, stack: str = "", name: str | None = None) -> MatrixAlpha:
    status = "ok" if alpha is not None else "flat_spectrum"
    numbers = dict.fromkeys(("spectral_norm", "frobenius_norm", "stable_rank", "log10_spectral_norm"), 1.0)
    numbers |= {"alpha_weighted": None, "log_alpha_norm": None, "entropy": None}
    return MatrixAlpha(
        name=name or f"{stack}.layers.{layer}.{role}.weight",
        module=f"{stack}.layers.{layer}.{role}",
        layer=layer,
        stack=stack,
        role=role,
        rows=8,
        cols=8,
        dtype="F32",
        estimator="ks",
        alpha=alpha,
        xmin=alpha and 1.0,
        ks_distance=alpha and 0.1,
        num_tail=0 if alpha is None else 4,
        sigma=alpha and 0.5,
        status=status,
        reason=None if alpha else "flat",
        num_eigs=8,
        num_zero=0,
        rank=8,
        **numbers,
    )


def model(*matrices: MatrixAlpha) -> ModelAlphas:
    layers = layer_alphas(matrices)
    return ModelAlphas(
        created_by=CreatedBy.current(),
        model=ModelRef(id="tiny", num_layers=len(layers)),
        analysis=AnalysisRef(estimator="ks", settings={}),
        layers=layers,
        matrices=matrices,
    )


def test_a_layer_is_the_unweighted_mean_of_its_valid_matrices():
    alphas = model(matrix(0, "q", 2.0), matrix(0, "k", 3.0), matrix(0, "v", None), matrix(1, "q", 5.0))
    assert alphas.per_layer == (2.5, 5.0)
    first = alphas.layers[0]
    assert (first.num_matrices, first.num_valid) == (3, 2)
    assert first.roles == {"q": 2.0, "k": 3.0, "v": None}


def test_experts_of_a_mixture_block_are_averaged_per_role_first():
    members = [matrix(0, "q", 2.0)] + [matrix(0, "up", alpha, name=f"e{alpha}") for alpha in (3.0, 5.0, 7.0)]
    assert model(*members).per_layer == (3.5,)


def test_matrices_outside_blocks_enter_no_layer():
    assert model(matrix(-1, "embed", 9.0), matrix(0, "q", 2.0)).per_layer == (2.0,)


def test_encoder_and_decoder_stay_apart():
    alphas = model(matrix(0, "q", 2.0, "encoder"), matrix(0, "q", 4.0, "decoder"))
    assert [(ref.stack, ref.layer) for ref in alphas.layer_refs] == [("encoder", 0), ("decoder", 0)]
    schedule = allocate(alphas, budget=6)
    assert [(layer.stack, layer.layer) for layer in schedule.layers] == [("encoder", 0), ("decoder", 0)]
    assert schedule.num_experts == (1, 5)


def test_a_layer_without_alpha_is_named_and_can_be_filled():
    alphas = model(matrix(0, "q", 2.0), matrix(1, "q", None), matrix(2, "q", 3.0), matrix(3, "q", 9.0))
    with pytest.raises(LayerWithoutAlphaError, match=r"layer 1 .*fill="):
        _ = alphas.per_layer
    filled = fill_median(alphas.layers)
    assert [layer.alpha for layer in filled] == [2.0, 3.0, 3.0, 9.0]
    assert [layer.filled for layer in filled] == [False, True, False, False]
    with pytest.raises(LayerWithoutAlphaError, match="no median"):
        fill_median(model(matrix(0, "q", None)).layers)


@settings(max_examples=EXAMPLES)
@given(values=st.lists(st.one_of(st.none(), st.floats(1.001, 200)), min_size=1, max_size=20))
def test_the_document_survives_its_round_trip(values):
    alphas = model(*(matrix(i, "q", value) for i, value in enumerate(values)))
    again = ModelAlphas.from_json(alphas.to_json())
    assert again == alphas
    assert again.to_json() == alphas.to_json()


def test_saving_and_loading(tmp_path):
    alphas = model(matrix(0, "q", 2.0))
    path = alphas.save(tmp_path / "deep" / "alphas.json")
    assert ModelAlphas.load(path) == alphas
    assert [entry.name for entry in path.parent.iterdir()] == ["alphas.json"]


def test_the_table_has_one_row_a_matrix():
    frame = model(matrix(0, "q", 2.0), matrix(1, "q", None)).to_pandas()
    assert list(frame.columns) == list(MatrixAlpha.model_fields)
    assert frame.alpha.tolist()[0] == 2.0
    assert frame.alpha.isna().tolist() == [False, True]


def test_a_stability_band_widens_the_confidence():
    plain = matrix(0, "q", 3.0)
    banded = plain.model_copy(update={"alpha_low": 2.0, "alpha_high": 4.0})
    assert (plain.stability_band, banded.stability_band) == (None, (2.0, 4.0))
    assert uncertain_alphas([banded])[0].band == (2.0, 4.0)
    others = [matrix(i, "q", 3.0) for i in range(1, 4)]
    sharp = [m.model_copy(update={"sigma": 1e-9}) for m in (plain, *others)]
    steady = allocate(model(*sharp), budget=40, confidence=True).confidence
    shaken = allocate(
        model(sharp[0].model_copy(update={"alpha_low": 2.0, "alpha_high": 4.0}), *sharp[1:]), 40, confidence=True
    )
    assert steady.ranges[0].low == steady.ranges[0].high == 10
    assert shaken.confidence.ranges[0].low < 10 < shaken.confidence.ranges[0].high


def test_the_summary_counts():
    summary = model(matrix(0, "q", 2.0), matrix(1, "q", None), matrix(2, "q", 4.0)).summary()
    assert (summary["num_layers"], summary["num_matrices"], summary["num_valid"]) == (3, 3, 2)
    assert (summary["mean_alpha"], summary["min_alpha"], summary["max_alpha"]) == (3.0, 2.0, 4.0)


def edited(**changes) -> str:
    return json.dumps({**json.loads(model(matrix(0, "q", 2.0)).to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", DocumentError, "not valid JSON"),
        ("[]", DocumentError, "JSON object"),
        ('{"kind": "ModelAlphas", "kind": "ModelAlphas"}', DocumentError, "same key twice"),
        ("[" * 100_000, DocumentError, "not valid JSON"),
        (edited(kind="LoRAExpertSchedule"), DocumentError, "expected kind 'ModelAlphas'"),
        (edited(schema_version="2.0"), SchemaVersionError, "upgrade alphalloc"),
        (edited(schema_version=1), DocumentError, "schema_version"),
        (edited(schema_version="²"), DocumentError, "schema_version"),
        (edited(layers="x"), DocumentError, "layers"),
        (edited(layers=[{"layer": 0}]), DocumentError, "layers.0"),
        (edited(layers=[*json.loads(edited())["layers"]] * 2), DocumentError, "listed twice"),
        (edited(layers=[{**json.loads(edited())["layers"][0], "layer": -1}]), DocumentError, "layers.0.layer"),
        (edited(layers=[{**json.loads(edited())["layers"][0], "alpha": "2"}]), DocumentError, "layers.0.alpha"),
        (edited(layers=[{**json.loads(edited())["layers"][0], "alpha": True}]), DocumentError, "layers.0.alpha"),
        (edited(layers=[{**json.loads(edited())["layers"][0], "alpha": 0}]), DocumentError, "layers.0.alpha"),
        (edited().replace("2.0,", "NaN,", 1), DocumentError, "NaN"),
        (edited().replace("2.0,", "1e999,", 1), DocumentError, "beyond the range of float64"),
    ],
)
def test_damaged_documents_are_named(text, error, words):
    with pytest.raises(error, match=words):
        ModelAlphas.from_json(text)


def test_a_newer_minor_version_is_read():
    assert ModelAlphas.from_json(edited(schema_version="1.7", novelty=3)).per_layer == (2.0,)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DocumentError, match="cannot be read"):
        ModelAlphas.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DocumentError, match="cannot be read"):
        ModelAlphas.load(tmp_path / "binary")


def test_a_histogram_survives_the_round_trip_and_a_turned_one_is_refused():
    kept = {"log10_low": -1.0, "log10_high": 2.0, "counts": [3, 0, 5]}
    alphas = model(matrix(0, "q", 2.0).model_copy(update={"esd_histogram": EsdHistogram(**kept)}))
    assert ModelAlphas.from_json(alphas.to_json()) == alphas
    turned = json.loads(alphas.to_json())
    turned["matrices"][0]["esd_histogram"]["log10_high"] = -1.0
    with pytest.raises(DocumentError, match="log10_low -1.0 is not below log10_high -1.0"):
        ModelAlphas.from_json(json.dumps(turned))
