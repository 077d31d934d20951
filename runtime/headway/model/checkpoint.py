"""What a folder's safetensors files hold, from their headers alone: no tensor is read, no torch needed.

A file is eight bytes of header length, a JSON header, and the tensors' bytes
(https://huggingface.co/docs/safetensors/index#format).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from headway.core.errors import ModelError, shorten

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"F64": 8, "F32": 4, "F16": 2, "BF16": 2})


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint. `offset` is that of its first byte in `file`, `name` its name there."""

    file: Path
    name: str
    dtype: str  # as the header spells it
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the model in `folder`, by name.

    Raises ModelError, naming file and remedy: no safetensors weights, a shard that is missing, cut short
    or broken, an index that disagrees with its shards.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    raise ModelError(_no_weights(folder))


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, by name; raises ModelError where it is cut short or broken."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            raw = _raw_header(file, stream, size)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    header = _parse_object(raw, file)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + len(raw)) for name, entry in header.items()}
    end = max((info.offset + info.num_bytes for info in tensors.values()), default=0)
    if end > size:
        raise ModelError(_truncated(file, f"its tensors end at byte {end}", size))
    return tensors


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; ModelError naming `file` where there is none."""
    try:
        return _parse_object(file.read_bytes(), file)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error


def _raw_header(file: Path, stream: BinaryIO, size: int) -> bytes:
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        what = f"its header ends at byte {length + 8}" if size >= 8 else "its header needs 8 bytes"
        raise ModelError(_truncated(file, what, size))
    if length > MAX_HEADER_BYTES:
        raise ModelError(f"{file} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    return stream.read(length)


def _parse_object(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object, found {shorten(value)}")
    return value


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(value) is int and value >= 0 for value in (*shape, start, stop))
        sound = sound and isinstance(dtype, str) and start <= stop
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ModelError(f"{file} describes tensor {name} wrongly: {shorten(entry)}")
    expected = math.prod(shape) * DTYPE_BYTES.get(dtype, 0)
    if dtype in DTYPE_BYTES and expected != stop - start:
        raise ModelError(
            f"{file}: tensor {name} must take {expected} bytes for {dtype} {list(shape)}, got {stop - start}"
        )
    offset = data_start + start
    return TensorInfo(file=file, name=name, dtype=dtype, shape=shape, offset=offset, num_bytes=stop - start)


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ModelError(f"{index} must map tensor names to files in weight_map")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ModelError(f"{index} names shard {shorten(shard)}, which is not a file beside it")
        if not (folder / shard).is_file():
            raise ModelError(f"{folder} lacks shard {shard} that {INDEX} names; download it again")
        found = read_header(folder / shard)
        if twice := tensors.keys() & found.keys():
            raise ModelError(f"{folder}: tensor {min(twice)} is in more than one shard")
        tensors |= found
    for name, shard in places.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelError(f"{folder}: shard {shard} lacks tensor {name} that {INDEX} places there")
    return tensors


def _truncated(file: Path, declared: str, size: int) -> str:
    return f"{file} is truncated: {declared}, the file has {size} bytes; download it again"


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if not pickled:
        return f"{folder} has no weights: it must hold {SINGLE} or {INDEX} with its shards"
    return (
        f"{folder} has only pickled weights ({shorten(pickled[0])}), which can run code when loaded; "
        f"convert them to {SINGLE} (transformers: save_pretrained)"
    )
