"""PyTorch's own files (``pytorch_model*.bin``, ``.pt``, ``.pth``): a zip of one pickle and the raw storages.

The pickle is read by ``torch.load(weights_only=True)``, which runs no code, under a fake-tensor mode, which takes
shapes and file offsets without reading a single weight. The weights themselves are then read by offset, as for
safetensors. There is no way to switch ``weights_only`` off.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from alphalloc.checkpoint.buffers import STORED_DTYPES, FileSlice, NotNumbers
from alphalloc.checkpoint.files import MAX_TENSORS, open_regular, read_into
from alphalloc.checkpoint.matrices import FLOAT_DTYPES, StoredTensor
from alphalloc.errors import (
    CorruptCheckpointError,
    MissingExtraError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

MAX_PICKLE_BYTES = 16 * 2**20  # chosen here: the pickle of 100,000 tensors takes about 12 MB
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # the number that opens a file of torch before 1.6
_LEGACY_PICKLES = 5  # it holds magic, version, system, objects and storage keys, each a pickle
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
_SMALL = ("/data.pkl", "/byteorder")
_SAFE_MODULES = ("torch", "collections", "numpy", "_codecs")

TORCH_DTYPES = {
    "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64",
    "torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.int16": "I16", "torch.int32": "I32",
    "torch.int64": "I64", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ", "torch.float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""torch's dtype names in safetensors' spelling."""


def read_headers(path: Path) -> list[StoredTensor]:
    """Return the tensors of one PyTorch file in its own order, without reading a weight.

    A state dict one level down, under "state_dict", "model_state_dict", "model" or "module", is found. Raises
    UnsafeCheckpointError for a pickle that asks for anything but tensors, CorruptCheckpointError for a broken or
    compressed zip and for a tensor that claims more bytes than are stored, UnsupportedCheckpointError for the format
    before torch 1.6 and for a matrix that is not contiguous, MissingExtraError without torch.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        head = bytearray(min(size, 4))
        read_into(descriptor, memoryview(head), 0, path)
    if bytes(head) != b"PK\x03\x04":
        _refuse_other_format(path, size)
    _check_zip(path, size)
    state = _unwrap(_load_fake(path))
    if len(state) > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path}: expected at most {MAX_TENSORS} tensors, found {len(state)}")
    tensors = [_tensor(path, name, value, size) for name, value in state.items() if hasattr(value, "untyped_storage")]
    if not tensors:
        raise CorruptCheckpointError(f"{path}: expected a state dict of tensors, found none; save model.state_dict()")
    return tensors


def _check_zip(path: Path, size: int) -> None:
    """The zip must be plain storage: a compressed member could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as exc:
        raise CorruptCheckpointError(f"{path}: broken zip archive ({exc}); truncated, copy it again") from exc
    if len(members) > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path}: expected at most {MAX_TENSORS} members, found {len(members)}")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise CorruptCheckpointError(f"{path}: a member name stands twice in the zip archive; it is not read")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CorruptCheckpointError(
                f"{path}: member {member.filename[:200]!r} is compressed, which torch never writes; it is not read"
            )
        if member.filename.endswith(_SMALL) and member.file_size > MAX_PICKLE_BYTES:
            raise CorruptCheckpointError(f"{path}: expected a pickle of at most {MAX_PICKLE_BYTES} bytes, found more")
    if sum(member.file_size for member in members) > size:
        raise CorruptCheckpointError(f"{path}: its members claim more than the file's {size} bytes; it is not read")
    small = [member for member in members if member.filename.endswith(_SMALL)]
    try:
        with zipfile.ZipFile(path) as archive:
            ends = {member.filename.rpartition("/")[2]: archive.read(member)[-3:] for member in small}
    except _ZIP_ERRORS as exc:
        raise CorruptCheckpointError(f"{path}: broken zip archive ({exc}); copy it again") from exc
    if ends.get("data.pkl", b"")[-1:] != b".":
        raise CorruptCheckpointError(f"{path}: its pickle is missing or cut short; copy it again")
    if ends.get("byteorder") == b"big":
        raise UnsupportedCheckpointError(f"{path}: was written on a big-endian machine; save it as safetensors")


def _load_fake(path: Path) -> Any:
    """Return what the file holds, tensors as fakes that know shape, strides and file offset."""
    try:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError as exc:
        raise MissingExtraError(
            f"{path}: reading PyTorch files needs torch: pip install 'alphalloc[torch]', or use safetensors"
        ) from exc
    try:
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise UnsafeCheckpointError(
            f"{path}: expected a pickle of tensors alone, found code in it ({_cause(exc)}), which was "
            "not run; "
            "get the model as safetensors"
        ) from exc
    except Exception as exc:  # a crafted pickle can make the unpickler fail in any way
        raise CorruptCheckpointError(f"{path}: torch cannot read it ({_cause(exc)}); copy it again") from exc


def _cause(exc: BaseException) -> str:
    """What torch objected to, without its advice to switch the safety off."""
    first = str(exc.__context__ or exc).split("\n")[0]
    return first.split(" was not an allowed")[0].split(" Please use")[0][:200] or type(exc).__name__


def _unwrap(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        for key in _NESTED:
            inner = value.get(key)
            if isinstance(inner, Mapping) and any(hasattr(item, "untyped_storage") for item in inner.values()):
                value = inner
                break
        return {str(key): item for key, item in value.items()}
    return {}


def _tensor(path: Path, name: str, value: Any, size: int) -> StoredTensor:
    where = f"{path}: tensor {name[:200]!r}"
    shape = tuple(int(side) for side in value.shape)
    dtype = TORCH_DTYPES.get(str(value.dtype), str(value.dtype))
    if value.is_quantized or str(value.layout) != "torch.strided":
        raise UnsupportedCheckpointError(f"{where}: quantised or sparse ({dtype}); save the plain weights")
    storage = value.untyped_storage()
    nbytes = value.numel() * value.element_size()
    start = value.storage_offset() * value.element_size()
    offset = int(storage._checkpoint_offset)
    if nbytes and start + nbytes > storage.nbytes():
        raise CorruptCheckpointError(
            f"{where}: its shape {list(shape)} claims {nbytes} bytes of a storage of {storage.nbytes()}; it is not read"
        )
    if offset + storage.nbytes() > size:
        raise CorruptCheckpointError(f"{where}: its storage ends after the file's {size} bytes; truncated")
    if len(shape) in (2, 3) and not value.is_contiguous():
        raise UnsupportedCheckpointError(
            f"{where}: is stored with strides {tuple(value.stride())}; save it with .contiguous()"
        )
    begin = offset + start
    raw = FileSlice(str(path), begin, shape, dtype, size) if dtype in STORED_DTYPES and value.is_contiguous() else None
    load = raw if raw is not None and dtype in FLOAT_DTYPES else NotNumbers(name, dtype)
    place = (str(path), begin, shape)
    return StoredTensor(name, shape, dtype, nbytes, str(path), load, offset=begin, storage=place, raw=raw)


def _refuse_other_format(path: Path, size: int) -> None:
    """Tell the pickle of old torch from a pickle with code and from no pickle at all, without running either."""
    with open_regular(path) as descriptor:
        head = bytearray(min(size, MAX_PICKLE_BYTES))
        read_into(descriptor, memoryview(head), 0, path)
    found: list[str] = []
    pickles = 0
    stream = BytesIO(bytes(head))
    with contextlib.suppress(ValueError, IndexError, EOFError, UnicodeDecodeError):
        while pickles < _LEGACY_PICKLES:
            _collect_globals(stream, found)
            pickles += 1
    foreign = [name for name in found if name.split(".")[0].split(" ")[0] not in _SAFE_MODULES]
    if foreign:
        raise UnsafeCheckpointError(
            f"{path}: expected a pickle of tensors alone, found a call of {foreign[0][:200]!r}, which was not run; "
            "get the model as safetensors"
        )
    if _LEGACY_MAGIC in head[:20]:
        raise UnsupportedCheckpointError(
            f"{path}: is in the format that torch wrote before 1.6; load and save it again, best as safetensors"
        )
    what = "a plain pickle" if pickles else "neither a zip archive nor a pickle"
    raise CorruptCheckpointError(f"{path}: expected a PyTorch file, found {what}; copy it again")


def _collect_globals(stream: BytesIO, found: list[str]) -> None:
    """Append the "module name" pairs that the next pickle of ``stream`` imports, by looking at its opcodes only."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            found.append(" ".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
