"""Reading GGUF: values against the gguf package's own reader, and headers that lie about their sizes."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from alphalloc.checkpoint import gguf as reader
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import CheckpointError, CorruptCheckpointError, MissingExtraError, UnsupportedCheckpointError


def types(what: str) -> list[str]:
    """The GGML types that the gguf package itself can quantise to, or dequantise from."""
    found = []
    for kind in Kind:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        try:
            if what == "quantize":
                gguf.quants.quantize(np.ones((1, block), dtype=np.float32), kind)
            else:
                gguf.quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return found


QUANTIZABLE = types("quantize")
DEQUANTIZABLE = [name for name in types("dequantize") if name not in ("F32", "F16", "BF16")]


def write(path: Path, kinds: dict[str, str], rows: int = 3, cols: int = 512) -> dict[str, np.ndarray[Any, Any]]:
    """Write one random matrix of each kind with gguf's own writer; return the values given to it."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    written = {}
    for name, kind in kinds.items():
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        written[name] = values
        if kind in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.float16 if kind == "F16" else np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, Kind[kind]), raw_dtype=Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_values_equal_those_of_the_reference_reader(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    written = write(path, {"blk.0.attn_q.weight": kind, "blk.1.attn_q.weight": kind})
    reference = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(str(path)).tensors}
    for tensor in reader.read_header(path).tensors:
        assert tensor.dtype == kind
        assert tensor.quantized == (kind not in ("F32", "F16", "BF16"))
        assert tensor.shape == (3, 512)
        values = tensor.load()
        assert not values.flags.writeable
        np.testing.assert_array_equal(values.astype(np.float32), reference[tensor.name])
        coarse = 2.5 if kind.startswith("TQ") else 1.0 if kind == "MXFP4" else 0.4
        np.testing.assert_allclose(values.astype(np.float32), written[tensor.name], atol=coarse)


def test_the_known_types_are_among_those_tested() -> None:
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"} <= set(QUANTIZABLE)
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"} <= set(DEQUANTIZABLE)


@pytest.mark.parametrize("kind", DEQUANTIZABLE)
def test_every_type_is_dequantised_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    """Random blocks of every type, several slabs: also of the types that the package cannot write itself."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (5, 2 * block_bytes), dtype=np.uint8)
    one = info("blk.0.attn_q.weight", [2 * block, 5], Kind[kind].value)
    (tmp_path / "m.gguf").write_bytes(padded(header(tensors=1, body=one), packed.tobytes()))
    (tensor,) = reader.read_header(tmp_path / "m.gguf").tensors
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(packed, Kind[kind])
        np.testing.assert_array_equal(tensor.load(), expected)
        part = tensor.load.narrow(1, 3, (2, 2 * block))()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(part, expected[1:3])


def test_smollm2_has_thirty_layers_of_seven_matrices(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.quantized) == ("gguf", "llama", True)
    assert len(checkpoint.matrices) == 210
    assert [m.layer for m in checkpoint.matrices] == [layer for layer in range(30) for _ in range(7)]
    shapes = {m.role: m.shape for m in checkpoint.matrices}
    assert shapes == {
        "q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
        "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536),
    }  # fmt: skip
    assert checkpoint.matrices[0].module == "model.layers.0.self_attn.k_proj"
    assert {s.name: s.reason for s in checkpoint.skipped}["token_embd.weight"].startswith("outside")


def test_smollm2_values_equal_those_of_the_reference_reader(smollm2: Path) -> None:
    data = np.memmap(smollm2, mode="r")
    for matrix in open_checkpoint(smollm2, include=["model.layers.29.*"]).matrices:
        assert matrix.offset is not None
        packed = np.array(data[matrix.offset : matrix.offset + matrix.nbytes]).reshape(matrix.shape[0], -1)
        np.testing.assert_array_equal(matrix.load(), gguf.quants.dequantize(packed, Kind[matrix.dtype]))


def test_the_embedding_comes_with_embeddings(smollm2: Path) -> None:
    extra = open_checkpoint(smollm2, embeddings=True).matrices[0]
    assert (extra.name, extra.module, extra.layer, extra.shape) == (
        "token_embd.weight", "model.embed_tokens", -1, (49152, 576)
    )  # fmt: skip


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, body: bytes = b"", magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + body


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def info(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def padded(content: bytes, data: bytes = b"") -> bytes:
    return content + b"\0" * (-len(content) % 32) + data


LIES = {
    "wrong magic": (header(magic=b"GGML"), "other leading bytes"),
    "empty": (b"", "truncated"),
    "2^60 tensors": (header(tensors=2**60), "at most 100000"),
    "2^60 keys": (header(keys=2**60), "at most 100000"),
    "key of 2^62 bytes": (header(keys=1, body=struct.pack("<Q", 2**62)), "truncated"),
    "array of 2^60 bytes": (header(keys=1, body=text("k") + struct.pack("<IIQ", 9, 0, 2**60)), "truncated"),
    "array of 2^60 texts": (header(keys=1, body=text("k") + struct.pack("<IIQ", 9, 8, 2**60)), "array of"),
    "array of arrays": (header(keys=1, body=text("k") + struct.pack("<IIQ", 9, 9, 1)), "array of"),
    "unknown metadata type": (header(keys=1, body=text("k") + struct.pack("<I", 99)), "unknown metadata type 99"),
    "a key twice": (header(keys=2, body=(text("k") + struct.pack("<IB", 0, 1)) * 2), "twice"),
    "text not UTF-8": (header(keys=1, body=struct.pack("<Q", 1) + b"\xff"), "UTF-8"),
    "alignment 3": (header(keys=1, body=text("general.alignment") + struct.pack("<II", 4, 3)), "power of two"),
    "a hundred dimensions": (header(tensors=1, body=text("t") + struct.pack("<I", 100)), "100 dimensions"),
    "a name twice": (padded(header(tensors=2, body=info("t", [4]) * 2), b"\0" * 16), "twice"),
    "past the end": (padded(header(tensors=1, body=info("t", [2**20]))), "truncated"),
    "overflowing shape": (padded(header(tensors=1, body=info("t", [2**63, 2**63]))), "truncated"),
    "offset past the end": (padded(header(tensors=1, body=info("t", [4], 0, 2**63)), b"\0" * 16), "truncated"),
    "overlap": (padded(header(tensors=2, body=info("t", [4]) + info("u", [4])), b"\0" * 16), "overlap"),
    "rows that fill no block": (padded(header(tensors=1, body=info("t", [33, 2], 2)), b"\0" * 90), "blocks of 32"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    content, message = LIES[name]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        reader.read_header(tmp_path / "bad.gguf")
    assert "bad.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(version=1), "version 1"),
        (header(version=3 << 24), "big-endian"),
        (padded(header(tensors=1, body=info("t", [32], 4)), b"\0" * 64), "unknown GGML type 4"),
        (padded(header(tensors=1, body=info("t", [256], 15)), b"\0" * 2000), "Q8_K, which the gguf package cannot"),
    ],
    ids=["version 1", "big-endian", "no such type", "no dequantisation"],
)
def test_what_is_not_supported_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        reader.read_header(tmp_path / "m.gguf")


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {"blk.0.attn_q.weight": "Q8_0", "blk.1.attn_q.weight": "F32"})
    whole = (tmp_path / "m.gguf").read_bytes()
    end = max((t.offset or 0) + t.nbytes for t in reader.read_header(tmp_path / "m.gguf").tensors)
    for length in range(0, end, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            reader.read_header(tmp_path / "cut.gguf")


def test_without_the_gguf_package_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "plain.gguf", {"blk.0.attn_q.weight": "F16"})
    write(tmp_path / "packed.gguf", {"blk.0.attn_q.weight": "Q4_0"})
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert len(reader.read_header(tmp_path / "plain.gguf").tensors) == 1
    with pytest.raises(MissingExtraError, match=r"pip install 'alphalloc\[gguf\]'"):
        reader.read_header(tmp_path / "packed.gguf")
