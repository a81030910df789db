"""Requests and replies as the content of Flower's messages.

Flower keeps an array as the bytes of an `.npy` file, beside a shape and a type that its sender
claims. It never unpickles. But the header of such bytes may promise far more numbers than follow,
for which a decoder would make room; so nothing here is decoded before claim, header and length
agree, and no answer before it has the names, shapes and types that were asked for.
"""

import math
import warnings
from io import BytesIO

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from rankwise.federated.message import Arrays, Reply, Request

ARRAYS, ABOUT = "arrays", "about"
TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
}
NPY = "numpy.ndarray"
BITS = {"bfloat16": "int16"}
"""What an `.npy` file has no name for goes as its bits."""


def packed(arrays: Arrays) -> ArrayRecord:
    """Tensors as Flower's arrays; TypeError for types that rankwise has no use for."""
    return ArrayRecord({name: array_of(name, tensor) for name, tensor in arrays.items()})


def array_of(name: str, tensor: Tensor) -> Array:
    own = str(tensor.dtype).removeprefix("torch.")
    if own not in TYPES:
        raise TypeError(f"array {name!r} is {tensor.dtype}; messages have {', '.join(TYPES)}")
    plain = tensor.detach().cpu().contiguous()
    array = Array(plain.view(torch.int16) if own in BITS else plain)
    return Array(own, array.shape, array.stype, array.data)


def unpacked(record: ArrayRecord) -> Arrays:
    """The tensors; ValueError where what an array claims is not what its bytes hold."""
    arrays = {}
    for name, array in record.items():
        flaw = inconsistency(array)
        if flaw is not None:
            raise ValueError(f"array {name!r} {flaw}")
        arrays[name] = torch.from_numpy(array.numpy()).view(TYPES[array.dtype])
    return arrays


def inconsistency(array: Array) -> str | None:
    """Why the bytes of `array` must not be decoded."""
    from numpy.lib import format as npy

    if array.stype != NPY or array.dtype not in TYPES:
        return f"is {array.dtype} as {array.stype}; only {', '.join(TYPES)} as {NPY} are read"
    file = BytesIO(array.data)
    try:
        if npy.read_magic(file) != (1, 0):
            return "is of an unknown version of the npy format"
        with warnings.catch_warnings():
            # NumPy warns of headers as Python 2 wrote them, once for each message that has one.
            warnings.simplefilter("error")
            shape, _, dtype = npy.read_array_header_1_0(file)
    except Exception:
        # NumPy parses the header as Python's: also TokenError, RecursionError, MemoryError.
        return "has no readable header"
    stored = BITS.get(array.dtype, array.dtype)
    if (shape, dtype.name, dtype.isnative) != (array.shape, stored, True):
        return f"claims {array.shape} {array.dtype} and has {shape} {dtype}"
    follow = len(array.data) - file.tell()
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != follow:
        return f"claims {shape} {array.dtype} and has {follow} bytes"
    return None


def misfit(record: ArrayRecord, like: Arrays) -> str | None:
    """How the claims of `record` differ from the names, shapes and types of `like`."""
    names = sorted(record.keys() ^ like.keys())
    if names:
        return f"array {names[0]!r} is {'missing' if names[0] in like else 'unexpected'}"
    for name, expected in like.items():
        array = record[name]
        if (array.shape, TYPES.get(array.dtype)) != (tuple(expected.shape), expected.dtype):
            return (
                f"array {name!r} must be {tuple(expected.shape)} {expected.dtype}, got "
                f"{array.shape} {array.dtype}"
            )
    return None


def of_request(request: Request) -> RecordDict:
    """What travels to a client."""
    about = ConfigRecord({"round": request.round, "phase": request.phase})
    return RecordDict({ARRAYS: packed(request.arrays), ABOUT: about})


def to_request(content: RecordDict) -> Request:
    """What came from the server; ValueError if it is no request."""
    about, arrays = content.get(ABOUT), content.get(ARRAYS)
    if not isinstance(about, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ValueError("the message is no request of `rankwise.integrations.flower.serve`")
    round, phase = about.get("round"), about.get("phase")
    if type(round) is not int or type(phase) is not str:
        raise ValueError(f"the request asks for phase {phase!r} of round {round!r}")
    return Request(round, phase, unpacked(arrays))


def of_reply(reply: Reply) -> RecordDict:
    """What travels to the server; who answers what, Flower knows."""
    about = ConfigRecord({"samples": reply.samples})
    return RecordDict({ARRAYS: packed(reply.arrays), ABOUT: about})


def to_reply(content: RecordDict, client: str, request: Request, like: Arrays) -> Reply:
    """What `client` answered to `request`; ValueError, with nothing decoded, unless as `like`.

    The core goes on to check what only numbers tell.
    """
    about, arrays = content.get(ABOUT), content.get(ARRAYS)
    if not isinstance(about, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ValueError("the answer is none of `rankwise.integrations.flower.client_app`")
    samples = about.get("samples")
    if type(samples) is not int:
        raise ValueError(f"the answer claims {samples!r} samples")
    flaw = misfit(arrays, like)
    if flaw is not None:
        raise ValueError(flaw)
    return Reply(client, request.round, request.phase, samples, unpacked(arrays))
