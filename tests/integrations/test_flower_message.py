"""Tensors as Flower's arrays and back, and bytes that are not what they claim."""

import io
import os
import pickle

import numpy as np
import pytest
import torch

from rankwise.federated import Reply, Request

pytest.importorskip("flwr")
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # noqa: E402

from rankwise.integrations.flower.message import (  # noqa: E402
    of_reply,
    of_request,
    packed,
    to_reply,
    to_request,
    unpacked,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (4, 3)])
def test_tensors_cross_bit_for_bit(dtype, shape):
    there = {"w": torch.randn(shape).to(dtype), "clock": torch.tensor([3, 1])}
    here = to_request(of_request(Request(5, "train", there)))
    assert (here.round, here.phase, here.arrays.keys()) == (5, "train", there.keys())
    for name, tensor in there.items():
        assert here.arrays[name].dtype == tensor.dtype
        assert torch.equal(here.arrays[name], tensor)
        here.arrays[name].zero_()  # a client may write into what it got


def test_a_transposed_tensor_crosses_as_what_it_is():
    there = torch.randn(4, 3).mT
    here = unpacked(packed({"w": there}))["w"]
    assert torch.equal(here, there)
    assert unpacked(ArrayRecord({"w": there}))["w"].equal(there)  # in Fortran's order


def test_a_type_without_use_is_refused_where_it_is_sent():
    with pytest.raises(TypeError, match=r"'w' is torch.complex64; messages have float16"):
        packed({"w": torch.zeros(2, dtype=torch.complex64)})


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def promising(shape: str, body: bytes = b"") -> bytes:
    return headed(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n") + body


def headed(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


class Bomb:
    def __reduce__(self):
        return os._exit, (13,)


ONES = npy(np.ones((2, 2), np.float32))
HOSTILE = {
    "pickled": (Array("object", (1,), "numpy.ndarray", npy(np.array([Bomb()]), True)), "object"),
    "pickled, said to be floats": (
        Array("float32", (1,), "numpy.ndarray", npy(np.array([Bomb()]), True)),
        r"has \(1,\) object",
    ),
    "a bare pickle": (
        Array("float32", (1,), "numpy.ndarray", pickle.dumps(Bomb())),
        "no readable header",
    ),
    "other bytes": (Array("float32", (2, 2), "torch.save", ONES), "as torch.save"),
    "two shapes": (Array("float32", (4,), "numpy.ndarray", ONES), r"claims \(4,\)"),
    "two types": (Array("float64", (2, 2), "numpy.ndarray", ONES), "has .* float32"),
    "too short": (Array("float32", (2, 2), "numpy.ndarray", ONES[:-1]), "has 15 bytes"),
    "too long": (Array("float32", (2, 2), "numpy.ndarray", ONES + b"1"), "has 17 bytes"),
    "a petabyte promised": (
        Array("float32", (2**48,), "numpy.ndarray", promising(f"({2**48},)")),
        "has 0 bytes",
    ),
    "negative": (
        Array("float32", (-1, -4), "numpy.ndarray", promising("(-1, -4)", bytes(16))),
        "claims",
    ),
    "the other end first": (
        Array("float32", (2,), "numpy.ndarray", npy(np.ones(2, ">f4"))),
        "has .* >f4",
    ),
    "a later version": (
        Array("float32", (2, 2), "numpy.ndarray", ONES[:6] + b"\x02" + ONES[7:]),
        "unknown version",
    ),
    **{
        f"a header that ends {kind}": (
            Array("float32", (1,), "numpy.ndarray", headed(text)),
            "no readable header",
        )
        for kind, text in {
            "within brackets": "{'descr': (\n",
            "within a word": "'''\n",
            "never": "-" * 9000 + "1\n",
            "in a sum": "1+" * 4000 + "1\n",
            "in a list for a name": "{[]: 1}\n",
        }.items()
    },
    "complex": (Array("complex64", (2,), "numpy.ndarray", npy(np.ones(2, np.complex64))), "only"),
    "nothing": (Array("float32", (0,), "numpy.ndarray", b""), "no readable header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_bytes_that_are_not_what_they_claim_are_never_decoded(kind, monkeypatch):
    array, reason = HOSTILE[kind]
    monkeypatch.setattr(np, "load", lambda *given, **options: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"array 'w' .*{reason}"):
        unpacked(ArrayRecord({"w": array}))


@pytest.mark.filterwarnings("default")
def test_a_header_of_python_2_is_refused_and_nothing_is_printed(recwarn):
    array = Array("float32", (2, 2), "numpy.ndarray", promising("(2L, 2L)", bytes(16)))
    with pytest.raises(ValueError, match="array 'w' has no readable header"):
        unpacked(ArrayRecord({"w": array}))
    assert not recwarn.list


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({}, "'v' is missing"),
        ({"v": torch.zeros(2), "w": torch.zeros(2), "x": torch.zeros(1)}, "'x' is unexpected"),
        ({"v": torch.zeros(2), "w": torch.zeros(3)}, r"'w' must be \(2,\) .*32, got \(3,\)"),
        ({"v": torch.zeros(2), "w": torch.zeros(2).double()}, "float32, got .* float64"),
    ],
)
def test_an_answer_that_does_not_fit_is_never_decoded(arrays, reason, monkeypatch):
    like = {"v": torch.zeros(2), "w": torch.zeros(2)}
    request = Request(0, "train", {})
    content = of_reply(Reply("a", 0, "train", 7, arrays))
    monkeypatch.setattr(np, "load", lambda *given, **options: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=reason):
        to_reply(content, "a", request, like)


@pytest.mark.parametrize("samples", [2.0, True, "7", [7]])
def test_a_number_of_samples_that_is_none_is_refused(samples):
    content = RecordDict({"arrays": packed({}), "about": ConfigRecord({"samples": samples})})
    with pytest.raises(ValueError, match="samples"):
        to_reply(content, "a", Request(0, "train", {}), {})


@pytest.mark.parametrize(
    "content",
    [{}, {"arrays": ConfigRecord(), "about": ConfigRecord()}, {"arrays": ArrayRecord()}],
)
def test_other_apps_messages_are_refused(content):
    with pytest.raises(ValueError, match="answer is none of"):
        to_reply(RecordDict(content), "a", Request(0, "train", {}), {})
    with pytest.raises(ValueError, match="no request of"):
        to_request(RecordDict(content))


def test_a_request_without_a_round_is_refused():
    about = ConfigRecord({"round": "0", "phase": "train"})
    with pytest.raises(ValueError, match="phase 'train' of round '0'"):
        to_request(RecordDict({"arrays": ArrayRecord(), "about": about}))
