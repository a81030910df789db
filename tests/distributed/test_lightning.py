"""Lightning's DDP on several processes: the run of one process, with changing ranks."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rankwise as rw
from loops import RANK_RULE, ranks
from processes import on_processes
from rankwise.integrations.lightning import RankwiseCallback
from scenes import distance, same


class Net(L.LightningModule):
    def __init__(self, *, manual: bool = False, head: bool = True, prepare: str = "whole") -> None:
        super().__init__()
        self.automatic_optimization = not manual
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3))
        self.double()
        rw.adapt_(self, rank=3, select=["net.0", "net.2"])
        self.net[3].requires_grad_(head)
        if prepare != "nothing":
            rw.distributed.prepare(self if prepare == "whole" else self.net)
        self.path: list[list[int]] = []

    def training_step(self, batch, index):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.clip_gradient_(0.5)
            optimizer.step()
        self.path.append(ranks(self))
        return loss

    def configure_optimizers(self):
        return rw.Optimizer(self, lr=2e-2, max_step=0.02, rank_rule=RANK_RULE)


def fitted(model: Net, rank: int, world: int, folder, **options):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(96, 12, generator=draw, dtype=torch.float64)
    data = TensorDataset(x, x[:, :3].sin())
    # Lightning's own sampler would shuffle.
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[RankwiseCallback()], **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=8 // world, sampler=sampler))
    return trainer


RUNS = (
    ({}, {}),
    ({"manual": True}, {}),
    ({"head": False}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
)


def runs(rank, world, folder):
    found = []
    for model_options, options in RUNS:
        model = Net(**model_options)
        trainer = fitted(model, rank, world, folder, **options)
        assert trainer.world_size == world
        traffic = model.net[0].replicas.traffic
        found.append((model.path, model.state_dict(), traffic.messages))
    for wrong, message in (("nothing", "before the model is wrapped"), ("part", "a part of it")):
        with pytest.raises(ValueError, match=message):
            fitted(Net(prepare=wrong), rank, world, folder)
    return found


def test_automatic_and_manual_optimization_are_those_of_one_process(tmp_path):
    outcomes = zip(*on_processes(2, runs, 2, tmp_path), strict=True)
    for found, (model_options, options) in zip(outcomes, RUNS, strict=True):
        alone = Net(prepare="nothing", **model_options)
        fitted(alone, 0, 1, tmp_path, **options)
        assert len({str(ranks) for ranks in alone.path}) > 1
        for path, state, messages in found:
            assert path == alone.path
            assert state.keys() == alone.state_dict().keys()
            assert distance(state, alone.state_dict()) < 1e-10
            assert messages == 12 // options.get("accumulate_grad_batches", 1)
        assert same([state for _, state, _ in found])


def test_processes_that_lightning_forks_itself(tmp_path, monkeypatch):
    """`prepare` is called before there are processes; DDP's construction brings them together."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model = Net()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(48, 12, generator=draw, dtype=torch.float64)
    trainer.fit(model, DataLoader(TensorDataset(x, x[:, :3].sin()), batch_size=4))
    assert ranks(model) != ranks(Net(prepare="nothing"))
