"""Lightning, automatic and manual, with ranks that change."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rankwise as rw
from loops import RANK_RULE, largest_defect, ranks, same_weights
from rankwise.integrations.lightning import RankwiseCallback
from rankwise.integrators import BUG

pytestmark = [
    # Of Lightning: advice about checkpoints.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]
BATCHES = 6


class Net(L.LightningModule):
    """Automatic optimization."""

    def __init__(self, dropout: float = 0.2, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(12, 16), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3),
        )  # fmt: skip
        rw.adapt_(self, rank=3, select=["net.0", "net.3"], train="net.5")
        self.options = {"lr": 2e-2, "max_step": 0.02, "rank_rule": RANK_RULE, **options}
        self.seen: list[float] = []

    def loss(self, batch):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.seen.append(loss.item())
        return loss

    def training_step(self, batch, index):
        return self.loss(batch)

    def configure_optimizers(self):
        optimizer = rw.Optimizer(self, **self.options)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class ManualNet(Net):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        self.lr_schedulers().step()


def loader(count: int = 8 * BATCHES, size: int = 8, dtype=torch.float32) -> DataLoader:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 12, generator=draw, dtype=dtype)
    return DataLoader(TensorDataset(x, x[:, :3].sin()), batch_size=size)


def trainer_of(folder: Path, **options) -> L.Trainer:
    options = {
        "max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "default_root_dir": folder, **options,
    }  # fmt: skip
    return L.Trainer(**options)


def fitted(folder: Path, model: Net, data: DataLoader | None = None, **options) -> L.Trainer:
    trainer = trainer_of(folder, **options)
    trainer.fit(model, loader() if data is None else data)
    return trainer


KINDS = [Net, ManualNet]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_after_an_epoch_is_the_uninterrupted_one_bit_for_bit(tmp_path, kind):
    """Without dropout: Lightning does not save the states of the random generators."""
    whole, again = kind(dropout=0.0), kind(dropout=0.0)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fitted(tmp_path, whole, enable_checkpointing=True, callbacks=[keep])
    trainer = trainer_of(tmp_path)
    trainer.fit(again, loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert ranks(again) == ranks(whole) != ranks(kind())
    assert same_weights(again, whole)
    assert again.seen == whole.seen[BATCHES:]
    assert trainer.optimizers[0].steps == 3 * BATCHES


class Resumable:
    """A loader that knows where it is: what Lightning asks for to go on within an epoch."""

    def __init__(self) -> None:
        self.batches, self.position = list(loader()), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_resumable_loader_that_holds_within_an_epoch(tmp_path, kind):
    whole, again = kind(dropout=0.0), kind(dropout=0.0)
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    fitted(tmp_path, whole, Resumable(), enable_checkpointing=True, callbacks=[keep], max_epochs=2)
    trainer = trainer_of(tmp_path, max_epochs=2)
    trainer.fit(again, Resumable(), ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert again.seen == whole.seen[4:]
    assert same_weights(again, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_is_a_bare_one(tmp_path, kind):
    model, bare = kind(dropout=0.0), kind(dropout=0.0)
    fitted(tmp_path, model, callbacks=[RankwiseCallback()])
    [optimizer], [scheduled] = bare.configure_optimizers()
    for _ in range(3):
        for batch in loader():
            optimizer.zero_grad()
            bare.loss(batch).backward()
            optimizer.step()
            scheduled["scheduler"].step()
    assert ranks(model) != ranks(kind())
    assert same_weights(model, bare)


def test_two_half_batches_are_one_whole_batch(tmp_path):
    whole, halves = Net(dropout=0.0).double(), Net(dropout=0.0).double()
    data = {size: loader(size=size, dtype=torch.float64) for size in (8, 4)}
    fitted(tmp_path, whole, data[8])
    fitted(tmp_path, halves, data[4], accumulate_grad_batches=2, callbacks=[RankwiseCallback()])
    assert ranks(whole) == ranks(halves) != ranks(Net())
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(whole.net.eval()(x), halves.net.eval()(x), rtol=1e-9, atol=1e-11)


def test_a_large_bound_clips_nothing(tmp_path):
    free, wide, tight = Net(), Net(), Net()
    for model, bound in ((free, None), (wide, 1e6), (tight, 1e-3)):
        torch.manual_seed(1)
        fitted(tmp_path, model, gradient_clip_val=bound)
    assert same_weights(free, wide) and not same_weights(free, tight)
    assert largest_defect(tight) < 1e-5


def test_bfloat16_products_leave_factors_float32_and_orthonormal(tmp_path):
    model, met = Net(), set()

    class Look(L.Callback):
        def on_train_batch_end(self, *_):
            met.add(tuple(ranks(model)))

    fitted(tmp_path, model, precision="bf16-mixed", callbacks=[Look()])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(met) > 1
    assert largest_defect(model) < 1e-5


def test_an_integrator_that_runs_the_model_again_gets_the_whole_gradient(tmp_path):
    """Lightning's closure clears gradients, and runs as often as it is called."""
    options = {"integrator": BUG(), "rule": rw.SGD(), "max_step": float("inf"), "dropout": 0.0}
    model, bare = Net(**options), Net(**options)
    fitted(tmp_path, model, callbacks=[RankwiseCallback()], max_epochs=2)
    [optimizer], [scheduled] = bare.configure_optimizers()
    for _ in range(2):
        for batch in loader():

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = bare.loss(batch)
                loss.backward()
                return loss

            optimizer.step(closure)
            scheduled["scheduler"].step()
    assert len(model.seen) > 2 * BATCHES
    assert same_weights(model, bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_tells_ranks_sizes_and_the_gradient(tmp_path, kind):
    model, logger = kind(), CSVLogger(tmp_path)
    trainer = fitted(tmp_path, model, logger=logger, callbacks=[RankwiseCallback()])
    metrics = trainer.logged_metrics
    assert float(metrics["rankwise/mean_rank"]) == sum(ranks(model)) / 2
    assert float(metrics["rankwise/skipped_steps"]) == 0
    assert float(metrics["rankwise/gradient_norm"]) > 0
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "rankwise/parameters" in lines[0] and len(lines) == 3 * BATCHES + 1


def test_callbacks_that_average_are_refused(tmp_path):
    for averaging in (StochasticWeightAveraging(1e-2), WeightAveraging()):
        for callbacks in ([RankwiseCallback(), averaging], [averaging, RankwiseCallback()]):
            with pytest.raises(ValueError, match="no basis"):
                fitted(tmp_path, Net(), callbacks=callbacks)


def test_an_average_by_lightning_is_refused_without_the_callback_too(tmp_path):
    with pytest.raises(ValueError, match="no basis"):
        fitted(tmp_path, Net(), callbacks=[WeightAveraging()])


def test_accumulation_under_an_integrator_that_runs_the_model_again_is_refused(tmp_path):
    options = {"integrator": BUG(), "rule": rw.SGD(), "dropout": 0.0}
    scheduled = GradientAccumulationScheduler({0: 2})
    for given in (
        {"accumulate_grad_batches": 2, "callbacks": [RankwiseCallback()]},
        {"callbacks": [RankwiseCallback(), scheduled]},
    ):
        with pytest.raises(ValueError, match="BUG runs the model again at every point"):
            fitted(tmp_path, Net(**options), **given)


class Stock(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize(
    "callbacks, message",
    [([RankwiseCallback()], r"return `rankwise.Optimizer\(self\)`"), ([], "must not step")],
)
def test_a_stock_optimizer_is_refused_with_and_without_the_callback(tmp_path, callbacks, message):
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, Stock(), callbacks=callbacks)


def recorded(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_recorded_run_tells_each_step_whatever_a_step_is_made_of(tmp_path):
    model = Net()
    fitted(
        tmp_path, model, loader(size=4), accumulate_grad_batches=2,
        callbacks=[RankwiseCallback(record=tmp_path / "run")],
    )  # fmt: skip
    lines = recorded(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 3 * BATCHES + 1))
    halves = [sum(model.seen[i : i + 2]) / 2 for i in range(0, len(model.seen), 2)]
    assert [line["loss"] for line in lines] == pytest.approx(halves)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_a_recorded_run_that_was_resumed_has_one_history(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    callbacks = [RankwiseCallback(tmp_path / "run"), keep]
    fitted(tmp_path, Net(), enable_checkpointing=True, callbacks=callbacks)
    trainer = trainer_of(tmp_path, callbacks=[RankwiseCallback(tmp_path / "run")])
    trainer.fit(Net(), loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    steps = [line["step"] for line in recorded(tmp_path / "run")]
    assert steps == list(range(1, 3 * BATCHES + 1))
    with pytest.raises(ValueError, match="of an earlier run"):
        fitted(tmp_path, Net(), callbacks=[RankwiseCallback(tmp_path / "run")])


def test_a_record_needs_the_loss(tmp_path):
    with pytest.raises(ValueError, match="return it from `training_step`"):
        fitted(tmp_path, ManualNet(), callbacks=[RankwiseCallback(tmp_path / "run")])
