"""One file of a run on many processes, which goes on on any number of them."""

import json
import random
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.lr_scheduler import LinearLR

import rankwise as rw
from processes import on_processes
from rankwise.io.plain import save_plain
from rankwise.report import Recorder
from rankwise.report.history import read_history
from rankwise.report.scalars import counts
from scenes import RULE, part
from sharded import Net, batch, loss_of, network, shard_, weight_error

STOP, END = 5, 8
ROWS = 8


class Run(NamedTuple):
    """A model, what is called to run it, and what trains it."""

    net: Any
    call: nn.Module
    optimizer: rw.Optimizer
    schedule: LinearLR

    def save(self, path, step: int) -> None:
        rw.save_training(path, **self.parts(), progress={"step": step})

    def load(self, path) -> int:
        return rw.load_training(path, **self.parts())["step"]

    def parts(self) -> dict[str, Any]:
        return {"model": self.net, "optimizer": self.optimizer, "scheduler": self.schedule}

    def go(self, first: int, last: int, rank: int = 0, world: int = 1) -> list[float]:
        """Losses of the whole batch in steps `first` to `last`."""
        losses = []
        for step in range(first, last):
            x, y = (part(rank, world, t) for t in batch(step, ROWS))
            self.optimizer.zero_grad()
            loss = loss_of(self.call, x, y)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(_mean(loss.detach(), world))
        return losses


def _mean(loss: Tensor, world: int) -> float:
    if world > 1:
        dist.all_reduce(loss)
    return loss.item() / world


def made(kind: str, dropout: float = 0.0, seed: int = 0) -> Run:
    """A run that is alone, in DDP, or sharded."""
    net = call = network(dropout=dropout)
    if kind == "another base":
        net.blocks[1].b.base.weight.data.mul_(1.1)
    if kind != "alone":
        replicas = rw.distributed.prepare(net)
        call = DDP(net) if kind == "ddp" else shard_(net, replicas)
    optimizer = rw.Optimizer(net, lr=0.05, rank_rule=RULE)
    torch.manual_seed(seed)
    random.seed(seed)
    return Run(net, call, optimizer, LinearLR(optimizer, 1.0, 0.2, total_iters=END))


def ranks(run: Run) -> list[int]:
    return [layer.rank for _, layer in run.optimizer.layers]


def on_two(rank, folder):
    found = {"losses": {}, "exact": {}}
    for kind in ("ddp", "fsdp2"):
        run = made(kind)
        losses = run.go(0, STOP, rank, 2)
        run.save(folder / f"{kind}-2.safetensors", STOP)
        found["losses"][kind] = losses + run.go(STOP, END, rank, 2)
        # The file of each wrapper, and that of a single process, goes on in the other one.
        for origin in ("alone-1", "ddp-2", "fsdp2-2"):
            if (folder / f"{origin}.safetensors").exists():
                again = made(kind)
                step = again.load(folder / f"{origin}.safetensors")
                found["losses"][f"{origin} in {kind}"] = again.go(step, END, rank, 2)
        # With dropout, of which each process has its own.
        noisy = made(kind, 0.3, seed=rank)
        noisy.go(0, STOP, rank, 2)
        noisy.save(folder / f"{kind}-dropout.safetensors", STOP)
        straight = noisy.go(STOP, END, rank, 2)
        again = made(kind, 0.3, seed=7)
        again.load(folder / f"{kind}-dropout.safetensors")
        same = again.go(STOP, END, rank, 2) == straight and ranks(again) == ranks(noisy)
        found["exact"][kind] = same, weight_error(again.net, noisy.net)
        if kind == "ddp" and rank == 0:
            rw.save(run.net, folder / "ddp")
            rw.export_lora(run.net, folder / "ddp-lora")
            with pytest.raises(ValueError, match=r"wrapped in DistributedDataParallel.*ddp.module"):
                rw.save(run.call, folder / "ddp")
        if kind == "fsdp2":
            # Each process names a folder of its own: the second one must not write.
            rw.save(run.net, folder / f"fsdp2-{rank}")
            rw.export_lora(run.net, folder / f"fsdp2-lora-{rank}")
            dist.barrier()
            again = made(kind)
            rw.load(again.net, folder / "fsdp2-0")
            found["loaded"] = weight_error(again.net, run.net)
            found["adapted"] = weight_error(adapted_when_sharded(folder / "fsdp2-0"), run.net)
            with pytest.raises(ValueError, match=r"trained on another base: 1 of 6"):
                made("another base").load(folder / "fsdp2-2.safetensors")
            with pytest.raises(ValueError, match=r"sharded over processes"):
                rw.merge_(run.net)
            with pytest.raises(ValueError, match=r"'0.weight' is sharded.*`rankwise.save`"):
                save_plain(fully_shard(nn.Sequential(nn.Linear(4, 4))), folder / f"plain-{rank}")
    found["draws"] = drawn(rank, folder)
    return found | failing(rank, folder) | recorded(rank, folder)


def adapted_when_sharded(file):
    """A plain model that FSDP2 holds already, as one must that fits into no single memory."""
    torch.manual_seed(3)
    net = Net().double()
    for module in (net.embedding, net.conv, *net.blocks, net):
        fully_shard(module)
    rw.load(net, file)
    rw.distributed.prepare(net)
    loss_of(net, *batch(0, ROWS)).backward()
    assert all(p.grad is not None for p in rw.Optimizer(net, lr=0.0).param_groups[0]["params"])
    return net


def drawn(process, folder):
    """What the random generators give after the state has been loaded."""
    made("ddp", seed=process).load(folder / "ddp-dropout.safetensors")
    return torch.rand(()).item(), random.random()


def failing(rank, folder):
    """A disk that does not take the file: nobody goes on as if it did."""
    (folder / "file").touch()
    try:
        made("ddp").save(folder / "file" / "x.safetensors", 0)
    except (OSError, RuntimeError) as error:
        return {"failure": f"{type(error).__name__}: {error}"}
    return {"failure": ""}


def recorded(rank, folder):
    """A recorder on each process, all of the same folder; and one that goes on."""
    lines = []
    for session in (0, 1):
        run = made("fsdp2")
        recorder = Recorder(folder / "run", run.optimizer, every=2)
        if session:
            run.optimizer.steps = 2
            recorder.resume(2)
        for step in range(2):
            run.go(step, step + 1, rank, 2)
            lines.append(recorder.step(1.0))
        if session == 0:
            # What the first process has written must be there before it is read again.
            dist.barrier()
    recorder.finish({"accuracy": 0.5})
    expected = run.optimizer.layers[0].layer.replicas.traffic.last
    return {
        "lines": [(line["step"], line["gradient_norm"], line["bytes_per_step"]) for line in lines],
        "counts": counts(run.optimizer)["bytes_per_step"] == expected,
    }


def on_four(rank, folder):
    found = {"losses": {}, "draws": drawn(rank, folder)}
    for kind, origin in (("ddp", "fsdp2-2"), ("fsdp2", "ddp-2")):
        run = made(kind)
        step = run.load(folder / f"{origin}.safetensors")
        found["losses"][f"{origin} in {kind}"] = run.go(step, STOP + 2, rank, 4)
        run.save(folder / f"{kind}-4.safetensors", STOP + 2)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def alone(folder):
    """Losses of a single process that is not interrupted."""
    run = made("alone")
    losses = run.go(0, STOP)
    run.save(folder / "alone-1.safetensors", STOP)
    return losses + run.go(STOP, END)


@pytest.fixture(scope="module")
def two(folder, alone):
    return on_processes(2, on_two, folder)


@pytest.fixture(scope="module")
def four(folder, two):
    return on_processes(4, on_four, folder)


def close(losses, expected):
    assert losses == pytest.approx(expected[-len(losses) :], rel=1e-10)


def test_losses_are_those_of_a_single_process(alone, two):
    for found in two:
        assert set(found["losses"]) == {
            "ddp", "alone-1 in ddp", "ddp-2 in ddp",
            "fsdp2", "alone-1 in fsdp2", "ddp-2 in fsdp2", "fsdp2-2 in fsdp2",
        }  # fmt: skip
        for losses in found["losses"].values():
            close(losses, alone)


def test_resume_on_as_many_processes_is_exact_with_dropout(two):
    assert [found["exact"] for found in two] == [{"ddp": (True, 0.0), "fsdp2": (True, 0.0)}] * 2


def test_resume_on_more_processes(alone, four):
    for found in four:
        for losses in found["losses"].values():
            close(losses, alone[: STOP + 2])


@pytest.mark.parametrize("file", ["ddp-2", "fsdp2-2", "ddp-4", "fsdp2-4"])
def test_resume_on_a_single_process(file, alone, four, folder):
    run = made("alone")
    step = run.load(folder / f"{file}.safetensors")
    close(run.go(step, END), alone)


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["rankwise"])


def test_the_file_is_that_of_a_single_process_and_more_random_states(folder, two):
    contents = {}
    for name in ("alone-1", "ddp-2", "fsdp2-2"):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        content = header(folder / f"{name}.safetensors")
        states = dict(map(tuple, content["tree"]["random"]["dict"]))
        others = states.pop("others", {"list": []})["list"]
        contents[name] = content, states.keys(), len(others), shapes
    first = contents.pop("alone-1")
    assert first[2] == 0
    for content, states, others, shapes in contents.values():
        assert others == 1 and states == first[1]
        assert content["model"] == first[0]["model"] and content["types"] == first[0]["types"]
        assert len(shapes) == len(first[3]) + 1
        assert {k: n for k, n in shapes.items() if k in first[3]} == first[3]


def test_prepared_on_a_single_process_it_is_the_same_file(folder, alone):
    run = made("alone")
    rw.distributed.prepare(run.net)
    run.go(0, STOP)
    run.save(folder / "prepared.safetensors", STOP)
    one, other = (folder / f"{name}.safetensors" for name in ("prepared", "alone-1"))
    assert header(one) == header(other)
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_process_has_a_random_state_of_its_own(two, four):
    draws = [found["draws"] for found in four]
    assert draws[:2] == [found["draws"] for found in two]
    assert len({torch for torch, _ in draws}) == len({python for _, python in draws}) == 4


def test_the_first_process_writes(folder, two):
    assert [(folder / f"fsdp2-{rank}").exists() for rank in (0, 1)] == [True, False]
    assert [(folder / f"fsdp2-lora-{rank}").exists() for rank in (0, 1)] == [True, False]
    assert [(found["loaded"], found["adapted"]) for found in two] == [(0.0, 0.0)] * 2
    for origin in ("ddp", "fsdp2-0"):
        plain = network()
        rw.load(plain, folder / origin)
        x, _ = batch(0, 4)
        assert not torch.equal(plain(x), network()(x))
    lora = [folder / f"{kind}/adapter_model.safetensors" for kind in ("ddp-lora", "fsdp2-lora-0")]
    with safe_open(lora[0], "pt") as one, safe_open(lora[1], "pt") as other:
        assert sorted(one.keys()) == sorted(other.keys()) != []


def test_all_processes_fail_if_the_first_cannot_write(two):
    first, second = (found["failure"] for found in two)
    assert first.startswith(("NotADirectoryError", "FileExistsError"))
    assert second == f"RuntimeError: process 0 failed: {first}"


def test_history_is_written_once_and_tells_what_is_sent(folder, two):
    lines = read_history(folder / "run" / "history.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert two[0]["lines"] == two[1]["lines"]
    assert [(n["step"], n["gradient_norm"], n["bytes_per_step"]) for n in lines] == two[0]["lines"]
    assert all(found["counts"] for found in two)
    # All numbers in the factors, and for each factor whether it has a gradient.
    optimizer = made("alone").optimizer
    held = [p for _, layer in optimizer.layers for p in layer.factor_parameters()]
    assert lines[0]["bytes_per_step"] == 8 * (sum(p.numel() for p in held) + len(held))
    assert "bytes_per_step" not in counts(optimizer)
    assert json.loads((folder / "run" / "metrics.json").read_text()) == {"accuracy": 0.5}
