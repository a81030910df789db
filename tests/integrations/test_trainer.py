"""`transformers.Trainer` with ranks that change: exact where it has to be."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, Trainer

import rankwise as rw
from loops import (
    checkpointing,
    classifier,
    largest_defect,
    optimizer_of,
    ranks,
    rows,
    same_weights,
    trainer_of,
)
from rankwise.integrations.arguments import check_engine
from rankwise.integrations.transformers import RankwiseCallback
from rankwise.integrators import BUG, AugmentedBUG


class InOrder(Trainer):
    """Rows in their order, and the mean over batches: two batches of 4 are one of 8."""

    def __init__(self, **options):
        super().__init__(**options)
        # BERT takes any keyword, from which `Trainer` concludes that it divides its loss itself.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def trained(folder: Path, model=None, **options):
    model = classifier() if model is None else model
    trainer = trainer_of(model, folder, **options)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("stop", [3, 4, 8])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=stop)
    again = trainer_of(classifier(), tmp_path / "again")
    assert ranks(again.model) != ranks(whole.model)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert same_weights(again.model, whole.model)
    assert losses(again) == losses(whole)
    assert again.optimizer.optimizer.steps == 12


def test_the_callback_changes_no_number(tmp_path):
    plain = trained(tmp_path / "plain")
    told = trained(tmp_path / "told", callbacks=[RankwiseCallback()])
    assert same_weights(plain.model, told.model)


def test_the_best_model_comes_back_with_its_ranks(tmp_path):
    trainer = trainer_of(
        classifier(), tmp_path, load_best_model_at_end=True, metric_for_best_model="loss",
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        lr_scheduler_type="constant", callbacks=[RankwiseCallback()],
    )  # fmt: skip
    trainer.train()
    evaluated = {
        line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line
    }
    best = min(evaluated, key=evaluated.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[best], rel=1e-6)
    stored = classifier()
    before = ranks(stored)
    rw.load(stored, tmp_path / f"checkpoint-{best}")
    assert ranks(trainer.model) == ranks(stored) != before


def test_two_half_batches_are_one_whole_batch(tmp_path):
    whole = trained(tmp_path / "whole", classifier(dropout=0.0).double(), kind=InOrder, max_steps=8)
    halves = trained(
        tmp_path / "halves", classifier(dropout=0.0).double(), kind=InOrder, max_steps=8,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    assert ranks(whole.model) == ranks(halves.model) != ranks(classifier())
    for name, value in whole.model.state_dict().items():
        if name.split(".")[-1] not in "USV":
            torch.testing.assert_close(value, halves.model.state_dict()[name])
    x = torch.stack([row["input_ids"] for row in rows(8, seed=3)])
    with torch.no_grad():
        torch.testing.assert_close(
            whole.model.eval()(x).logits, halves.model.eval()(x).logits, rtol=1e-9, atol=1e-11
        )


def test_a_large_bound_clips_nothing_and_a_small_one_only_scales(tmp_path):
    free = trained(tmp_path / "free", max_grad_norm=0.0)
    wide = trained(tmp_path / "wide", max_grad_norm=1e6)
    assert same_weights(free.model, wide.model)
    # All gradients of all steps become half as large: Adam's relative step does not see it.
    tight = trained(tmp_path / "tight", max_grad_norm=1e-3)
    assert not same_weights(free.model, tight.model)
    assert largest_defect(tight.model) < 1e-5


def test_clipped_gradients_are_taken_by_an_integrator_of_several_points(tmp_path):
    model = classifier()
    optimizer = optimizer_of(model, integrator=AugmentedBUG())
    tight = trained(tmp_path, model, optimizer=optimizer, max_grad_norm=1e-3)
    assert ranks(tight.model) != ranks(classifier())
    assert largest_defect(tight.model) < 1e-5


def test_bfloat16_products_leave_factors_float32_and_orthonormal(tmp_path):
    trainer = trained(tmp_path, bf16=True, max_steps=24)
    factors = [p for _, layer in trainer.optimizer.optimizer.layers for p in layer.factors()]
    assert {p.dtype for p in factors} == {torch.float32}
    assert ranks(trainer.model) != ranks(classifier())
    assert largest_defect(trainer.model) < 1e-5


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    plain = trained(tmp_path / "plain")
    checkpointed = trained(tmp_path / "checkpointed", **checkpointing())
    assert ranks(checkpointed.model) != ranks(classifier())
    assert losses(checkpointed) == losses(plain)


# Of torch, when it loads its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_model_trains_alike(tmp_path):
    torch.compiler.reset()
    plain = trained(tmp_path / "plain", classifier(dropout=0.0), max_steps=4)
    compiled = trained(
        tmp_path / "compiled", classifier(dropout=0.0), max_steps=4, torch_compile=True,
        torch_compile_backend="eager",
    )  # fmt: skip
    assert ranks(compiled.model) == ranks(plain.model) != ranks(classifier())
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_the_log_tells_ranks_sizes_and_the_gradient(tmp_path):
    trainer = trained(tmp_path, callbacks=[RankwiseCallback()], max_grad_norm=0.0)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 12
    optimizer = trainer.optimizer.optimizer
    assert lines[-1]["rankwise/mean_rank"] == pytest.approx(
        sum(ranks(trainer.model)) / len(ranks(trainer.model))
    )
    assert lines[-1]["rankwise/skipped_steps"] == optimizer.skipped == 0
    numbers = sum((sum(layer.shape) + 1) * layer.rank for _, layer in optimizer.layers)
    assert lines[-1]["rankwise/parameters"] == numbers
    assert all(0 < line["rankwise/gradient_norm"] for line in lines)


def test_reporters_get_the_numbers_when_the_callback_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(classifier(), tmp_path, report_to="tensorboard", max_steps=2)
    RankwiseCallback().add_to(trainer)
    trainer.train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    wanted = {"mean_rank", "parameters", "skipped_steps", "gradient_norm"}
    assert {f"train/rankwise/{name}" for name in wanted} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/rankwise/mean_rank")] == [1, 2]


def test_reporters_that_come_first_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(
        classifier(), tmp_path, report_to="tensorboard", callbacks=[RankwiseCallback()]
    )
    with pytest.warns(UserWarning, match=r"`RankwiseCallback\(\).add_to\(trainer\)`"):
        trainer.train()


def test_checkpoints_hold_the_adapter(tmp_path):
    trainer = trained(tmp_path, callbacks=[RankwiseCallback()], save_strategy="steps", save_steps=4)
    assert len(list(tmp_path.glob("checkpoint-*/adapter.safetensors"))) == 3
    loaded = classifier(seed=0)
    rw.load(loaded, tmp_path / "checkpoint-12")
    assert same_weights(loaded, trainer.model)
    assert json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())[
        "log_history"
    ][0]["rankwise/mean_rank"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 1e-4}, r"learning_rate=0.0001.*Optimizer\(model, lr=0.0001\)"),
        ({"weight_decay": 0.1}, r"Optimizer\(model, weight_decay=0.1\)"),
        ({"adam_beta1": 0.8}, "leave it out"),
        ({"optim": "adafactor"}, "leave it out"),
    ],
)
def test_arguments_without_effect_are_refused(tmp_path, options, message):
    trainer = trainer_of(classifier(), tmp_path, callbacks=[RankwiseCallback()], **options)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_engine_with_parameters_of_its_own_is_refused():
    """The arguments themselves are made where DeepSpeed is installed only."""
    with pytest.raises(ValueError, match=r"deepspeed=\.\.\.\)` keeps parameters in flat buffers"):
        check_engine(SimpleNamespace(deepspeed={"zero_optimization": {"stage": 2}}))
    check_engine(SimpleNamespace(deepspeed=None))


def test_arguments_that_were_handed_on_are_not(tmp_path):
    trained(
        tmp_path, callbacks=[RankwiseCallback()], learning_rate=2e-2, weight_decay=0.0, max_steps=1
    )


def test_a_stock_optimizer_is_refused_with_and_without_the_callback(tmp_path):
    for callbacks, message in (
        ([RankwiseCallback()], "pass `optimizers="),
        (None, "must not step"),
    ):
        model = classifier()
        stock = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        trainer = trainer_of(model, tmp_path, optimizer=stock, callbacks=callbacks)
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert same_weights(model, classifier())


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    optimizer = optimizer_of(classifier())
    trainer = trainer_of(
        classifier(), tmp_path, optimizer=optimizer, callbacks=[RankwiseCallback()]
    )
    with pytest.raises(ValueError, match="no optimizer of the trainer has layer 'bert.encoder"):
        trainer.train()


def test_an_integrator_that_runs_the_model_again_is_refused(tmp_path):
    model = classifier()
    optimizer = optimizer_of(model, integrator=BUG(), rule=rw.SGD())
    trainer = trainer_of(model, tmp_path, optimizer=optimizer, callbacks=[RankwiseCallback()])
    with pytest.raises(ValueError, match="BUG runs the model again.*a loop of your own"):
        trainer.train()


def test_a_model_without_low_rank_layers_takes_any_optimizer(tmp_path):
    model = classifier()
    for layer in model.modules():
        if hasattr(layer, "factors"):
            layer.requires_grad_(False)
    stock = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    trained(tmp_path, model, optimizer=stock, callbacks=[RankwiseCallback()], max_steps=2)


def recorded(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_recorded_run_that_was_resumed_has_one_history(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = [RankwiseCallback(record=tmp_path / "whole-run")]
    trained(tmp_path / "whole", callbacks=whole, **options)
    trained(tmp_path / "parts", callbacks=[RankwiseCallback(tmp_path / "run")], **options)
    again = trainer_of(classifier(), tmp_path, callbacks=[RankwiseCallback(tmp_path / "run")])
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    timed = {"seconds", "memory", "peak_memory", "spectra", "condition"}
    one, other = (
        [{k: v for k, v in line.items() if k not in timed} for line in recorded(tmp_path / run)]
        for run in ("whole-run", "run")
    )
    assert one == other and [line["step"] for line in one] == list(range(1, 13))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_the_last_line_of_a_record_is_of_the_last_step_not_of_the_best(tmp_path):
    callback = RankwiseCallback(tmp_path / "run")
    trained(
        tmp_path, callbacks=[callback], load_best_model_at_end=True, max_steps=4,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    last = recorded(tmp_path / "run")[-1]
    assert sum(map(len, last["spectra"])) == pytest.approx(last["mean_rank"] * len(last["spectra"]))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["eval_loss"] > 0


def test_a_record_ends_with_the_last_evaluation_also_where_that_stops_the_run(tmp_path):
    stops = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    trainer = trained(
        tmp_path / "trainer", callbacks=[RankwiseCallback(record=tmp_path / "run"), stops],
        eval_strategy="epoch", save_strategy="epoch", metric_for_best_model="loss", max_steps=60,
        load_best_model_at_end=True,
    )  # fmt: skip
    assert trainer.state.global_step == 12 < trainer.state.max_steps
    evaluated = [line for line in trainer.state.log_history if "eval_loss" in line]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["eval_loss"] == evaluated[-1]["eval_loss"]
    last = recorded(tmp_path / "run")[-1]
    assert last["step"] == 12 and len(last["spectra"]) == len(ranks(trainer.model))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_a_record_needs_the_loss_of_each_step(tmp_path):
    callback = RankwiseCallback(tmp_path / "run")
    trainer = trainer_of(classifier(), tmp_path, callbacks=[callback], logging_steps=5)
    with pytest.raises(ValueError, match="logging_steps=1"):
        trainer.train()


def test_a_new_run_does_not_take_the_place_of_a_recorded_one(tmp_path):
    trained(tmp_path, callbacks=[RankwiseCallback(tmp_path / "run")], max_steps=2)
    with pytest.raises(ValueError, match="of an earlier run"):
        trained(tmp_path, callbacks=[RankwiseCallback(tmp_path / "run")], max_steps=2)
    assert len(recorded(tmp_path / "run")) == 2
