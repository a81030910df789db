"""Files of tensors, without NumPy."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rankwise.io.tensor_file import write_tensors

EXTENT = {"a": (3, 2), "one": (1,), "number": (), "none": (0, 4), "Ärmel.U": (2,)}
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
TYPES = (*TYPES, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_and_shape_comes_back(tmp_path, draw, dtype):
    tensors = {name: torch.randint(2, s, generator=draw).to(dtype) for name, s in EXTENT.items()}
    tensors["turned"] = torch.arange(6).reshape(2, 3).to(dtype).mT
    write_tensors(tmp_path / "t.safetensors", tensors, {"text": 'a "quoted" word, ü'})
    back = load_file(tmp_path / "t.safetensors")
    assert back.keys() == tensors.keys()
    for name, t in tensors.items():
        assert (back[name].dtype, back[name].shape) == (dtype, t.shape)
        assert torch.equal(back[name], t)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("checksum").startswith("sha256:")
    assert metadata == {"format": "pt", "text": 'a "quoted" word, ü'}


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
