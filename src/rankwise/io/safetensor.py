"""The bytes of a safetensors file.

`safetensors.torch.save_file` needs NumPy, which torch does not bring along.
"""

import ctypes
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.complex64: "C64",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint64: "U64",
        torch.uint32: "U32",
        torch.uint16: "U16",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
)


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The file, part by part; tensors are dense, contiguous and on the CPU.

    The length of the header in 8 bytes, the header as JSON, padded to a multiple of 8, and the
    numbers, those of large types first, so that each tensor starts at a multiple of its type's
    size. All in little-endian order.

    Raises:
        TypeError: for a type of numbers that the format does not have, and metadata but strings.
    """
    wrong = next((key for key, text in metadata.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"metadata must be str, {wrong!r} is {metadata[wrong]!r}")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        t = tensors[name]
        if t.dtype not in NAMES:
            raise TypeError(f"safetensors has no type for {name!r}, which is {t.dtype}")
        start, end = end, end + t.nbytes
        header[name] = {
            "dtype": NAMES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        yield ctypes.string_at(tensors[name].data_ptr(), tensors[name].nbytes)
