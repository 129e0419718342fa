"""Weights of a PyTorch module from a file, without running code that the file may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InvalidContent

if TYPE_CHECKING:
    import torch

_MAX_HEADER_BYTES = 100_000_000
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def load_weights(module: torch.nn.Module, path: Path, *, may_unpickle: bool) -> None:
    """Put the state dict of a .safetensors, or of a file of torch.save, into `module`. Raises InvalidContent."""
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path, may_unpickle=may_unpickle)
    state = getattr(state, "state_dict", lambda: state)()
    if isinstance(state, dict) and set(state) & {"state_dict", "model_state_dict"}:
        state = state.get("state_dict", state.get("model_state_dict"))
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        raise InvalidContent(f"{path}: is not for this module: {' '.join(lines[:4])}") from exc


def read_pickled(path: Path, *, may_unpickle: bool) -> Any:
    """What torch.save has written: tensors, and other objects only where `may_unpickle`. Raises InvalidContent."""
    import torch

    from app.optimize.networks.torch_export import quietly

    try:
        with path.open("rb") as file:
            head = file.read(len(_ZIP))
            if head != _ZIP and not head.startswith(_PICKLE):
                raise InvalidContent(f"{path}: is no file of torch.save")
        with quietly():
            return torch.load(path, map_location="cpu", weights_only=not may_unpickle)
    except InvalidContent:
        raise
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except Exception as exc:  # of unpickling any
        text = str(exc)
        if "weights_only" in text and not may_unpickle:
            raise InvalidContent(
                f"{path}: holds more than weights, and opening such a pickle runs what code it holds. Save "
                "module.state_dict() instead, or say --trust-pickle if you know who made it"
            ) from exc
        raise InvalidContent(f"{path}: is no file of torch.save ({type(exc).__name__}: {_first_line(text)})") from exc


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The format is https://github.com/huggingface/safetensors#format: the length of a JSON header as a little-endian
    64-bit number, the header with datatype, shape and place of each tensor, and the tensors. Raises InvalidContent."""
    import torch

    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    try:
        data = bytearray(path.read_bytes())
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(_MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError("it is cut off")
        header = json.loads(data[8 : 8 + length])
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            part = data[8 + length + first : 8 + length + last]
            dtype = dtypes[entry["dtype"]]
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as exc:
        raise InvalidContent(f"{path}: is no safetensors file ({type(exc).__name__}: {exc})") from exc
    return tensors


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no message")
