"""The bytes of a safetensors file, beside what its own library writes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save

from rankwise.io.safetensor import NAMES, parts_of

EXTENT = {"a": (3, 2), "one": (1,), "number": (), "none": (0, 4), "Ärmel.U": (2,)}


def numbers(draw, shape, dtype):
    return torch.randint(2, shape, generator=draw).to(dtype)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_type_and_shape_is_read_by_the_library(draw, dtype):
    tensors = {name: numbers(draw, shape, dtype) for name, shape in EXTENT.items()}
    back = load(b"".join(parts_of(tensors, {"format": "pt"})))
    assert back.keys() == tensors.keys()
    for name, t in tensors.items():
        assert (back[name].dtype, back[name].shape) == (dtype, t.shape)
        assert back[name].flatten().tolist() == t.flatten().tolist()


def test_it_is_what_the_library_writes(draw):
    tensors = {
        "z": torch.randn(3, generator=draw).double(),
        "b": torch.randn(5, 3, generator=draw),
        "a": torch.randn(3, generator=draw).bfloat16(),
        "flag": torch.tensor([True, False, True]),
    }
    for metadata in ({"format": "pt"}, {"format": "pt", "text": 'a "quoted" word, ü'}):
        ours, theirs = b"".join(parts_of(tensors, metadata)), save(tensors, metadata)
        assert len(ours) == len(theirs)
        start = 8 + int.from_bytes(ours[:8], "little")
        assert ours[:8] == theirs[:8] and ours[start:] == theirs[start:]


def test_what_the_format_has_not_is_refused():
    with pytest.raises(TypeError, match="no type for 'x', which is torch.complex128"):
        list(parts_of({"x": torch.zeros(2, dtype=torch.complex128)}, {}))
    with pytest.raises(TypeError, match="metadata must be str, 'n' is 3"):
        list(parts_of({}, {"n": 3}))


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None                    # its import fails, as where it is not installed
import warnings
warnings.simplefilter("ignore")
import torch
import rankwise as rw
from rankwise.federated import FeDLRT, Server

def network():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8))
    rw.factorize_(net, rank=2, init=rw.init.Random(seed=0))
    return net

net, folder = network(), sys.argv[1]
rw.save(net, folder)
other = network()
with torch.no_grad():
    other[0].bias.add_(1.0)
rw.load(other, folder)
assert torch.equal(other(torch.eye(8)), net(torch.eye(8)))
optimizer = rw.Optimizer(net)
net(torch.eye(8)).square().mean().backward()
optimizer.step()
state, parts = f"{folder}/state.safetensors", {"model": net, "optimizer": optimizer}
rw.save_training(state, **parts, progress={"step": 1})
assert rw.load_training(state, **parts) == {"step": 1}
server = Server(net, FeDLRT(), ["a"])
server.save(f"{folder}/server.safetensors")
server.load(f"{folder}/server.safetensors")
"""


def test_files_need_torch_and_safetensors_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMPY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
