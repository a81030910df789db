"""The main job, on a tiny encoder: its files, its exactness, its refusals."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise as rw
from rankwise import robust
from rankwise.optim.tolerance import Tolerance
from rankwise.optim.trust import DEFAULT_LR
from rankwise.recipes import training
from rankwise.recipes.classifier import encode, pretrained_classifier
from rankwise.recipes.examples import Example
from rankwise.recipes.finetune import Outcome, finetune
from rankwise.recipes.history import Watcher
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.ranks import chosen_rank_rule

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
STEPS = 12
MEASURED = ("seconds", "memory", "peak_memory")


@pytest.fixture
def options(tiny_encoder: Path, labelled_file: Path, tmp_path: Path) -> FinetuneOptions:
    return FinetuneOptions(
        model=str(tiny_encoder), data=str(labelled_file), rank=4, steps=STEPS, batch_size=8,
        lr=1e-2, output=tmp_path / "run", save_every=4,
    )  # fmt: skip


def with_(options: FinetuneOptions, **changes) -> FinetuneOptions:
    return dataclasses.replace(options, **changes)


def untimed(outcome: Outcome) -> tuple:
    metrics = {
        k: v
        for k, v in outcome.metrics.items()
        if k not in ("seconds_per_step", "peak_memory_bytes", "options")
    }
    return metrics, [
        {k: v for k, v in line.items() if k not in MEASURED} for line in outcome.history
    ]


def test_the_folder_holds_what_is_promised(options):
    outcome = finetune(options, SILENT)
    folder = options.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert {"accuracy", "train_loss", "eval_loss", "ranks", "parameters", "seconds_per_step"} < set(
        metrics
    )
    assert {"peak_memory_bytes", "seed", "options", "versions", "skipped_steps"} < set(metrics)
    assert set(metrics["parameters"]) == {"start", "end", "mean"}
    told = metrics["versions"]["torch"]
    assert metrics["options"]["rank"] == 4 and torch.__version__.split("+")[0] == told.split("+")[0]
    assert len(metrics["ranks"]) == 12
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert metrics["parameters"]["end"] == lines[-1]["parameters"]
    assert metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / STEPS)
    assert (folder / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "labels.json").read_text()) == ["bad", "good"]


def test_training_learns_the_words_that_tell_the_label(options):
    outcome = finetune(with_(options, steps=60, head_lr=3e-2, eval_fraction=0.3), SILENT)
    assert outcome.metrics["accuracy"] > 0.9


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(options, tmp_path):
    one = finetune(options, SILENT)
    same = finetune(with_(options, output=tmp_path / "same"), SILENT)
    other = finetune(with_(options, output=tmp_path / "other", seed=1), SILENT)
    assert untimed(one) == untimed(same)
    assert untimed(one) != untimed(other)


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("rule", [{"rtol": 0.2}, {"budget": 900}, {"rule": "spectral"}])
def test_an_interrupted_run_goes_on_exactly(options, tmp_path, stop, rule):
    options = with_(options, **rule)
    whole = finetune(with_(options, output=tmp_path / "whole"), SILENT)

    def interrupt(line):
        if line["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(training.Interrupted, match=f"after step {stop}.*--resume"):
        finetune(options, Watcher(say=lambda message: None, step=interrupt))
    assert not (options.output / "metrics.json").exists()
    resumed = finetune(FinetuneOptions(output=options.output, resume=True), SILENT)
    assert untimed(resumed) == untimed(whole)
    one = load_file(tmp_path / "whole" / "adapter.safetensors")
    other = load_file(options.output / "adapter.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps(options, tmp_path):
    whole = finetune(with_(options, output=tmp_path / "whole"), SILENT)

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == 7:
            raise Killed

    with pytest.raises(Killed):
        finetune(options, Watcher(say=lambda message: None, step=kill))
    resumed = finetune(FinetuneOptions(output=options.output, resume=True), SILENT)
    assert untimed(resumed) == untimed(whole)


def test_the_export_reloads_through_peft_with_the_same_outputs(options, tiny_encoder):
    from peft import PeftModel
    from transformers import AutoModel

    finetune(options, SILENT)
    adapted = pretrained_classifier(tiny_encoder, classes=2, seed=0)
    rw.load(adapted.model, options.output)
    plain = AutoModel.from_pretrained(tiny_encoder)
    peft = PeftModel.from_pretrained(plain, options.output / "lora").eval()
    batch = encode(adapted.tokenizer, [Example("the film was great", 1)], 32)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours = adapted.model.eval().encoder(**inputs)[0]
        theirs = peft(**inputs)[0]
        unadapted = AutoModel.from_pretrained(tiny_encoder).eval()(**inputs)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (ours - unadapted).abs().max() > 1e-4


@pytest.mark.parametrize("task, told", [("classifier", (16, 150, 40)), ("language", (2, 60, 256))])
def test_what_depends_on_the_kind_of_job_is_told(task, told):
    data = Path("rows.jsonl") if task == "language" else None
    options = FinetuneOptions(data=data).for_task(task)
    values = options.to_json()
    assert (values["batch_size"], values["steps"], values["max_length"]) == told
    given = FinetuneOptions(data=data, batch_size=3, steps=4, max_length=5).for_task(task)
    assert (given.rows, given.total_steps, given.length) == (3, 4, 5)


def test_the_default_budget_is_half_of_the_start(options):
    sizes = finetune(options, SILENT).metrics["parameters"]
    assert sizes["end"] <= sizes["start"] / 2


@pytest.mark.parametrize("rates", [{}, {"rate_free": True, "lr": DEFAULT_LR}])
def test_beta_keeps_the_singular_values_of_the_adapters_together(
    options, tiny_encoder, tmp_path, rates
):
    def worst(beta: float | None) -> float:
        run = with_(options, beta=beta, fixed_rank=True, output=tmp_path / f"{beta}", **rates)
        names = finetune(run, SILENT).metrics["ranks"]
        model = pretrained_classifier(tiny_encoder, classes=2, seed=0).model
        rw.load(model, run.output)
        found = robust.condition_numbers(model)
        return max(found[f"encoder.{name}"] for name in names)

    # Strong, for in so few steps there is little time.
    assert worst(300.0) < worst(None) / 2


@pytest.mark.parametrize("steps, every", [(1, 2), (6, 2), (60, 10), (150, 25), (9000, 25)])
def test_a_short_run_has_shorter_cycles(options, steps, every):
    assert chosen_rank_rule(with_(options, steps=steps, rtol=0.2), []) == Tolerance(
        rtol=0.2, every=every
    )


def test_an_earlier_run_is_not_overwritten_unless_asked(options):
    finetune(options, SILENT)
    with pytest.raises(ValueError, match="is not empty; --resume .*--overwrite"):
        finetune(options, SILENT)
    finetune(with_(options, overwrite=True), SILENT)


def test_resuming_is_refused_where_there_is_nothing_to_resume(options, tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume"):
        finetune(FinetuneOptions(output=tmp_path / "none", resume=True), SILENT)
    finetune(options, SILENT)
    with pytest.raises(ValueError, match="is finished"):
        finetune(FinetuneOptions(output=options.output, resume=True), SILENT)


def test_a_resumed_run_keeps_its_options_and_its_data(options, labelled_file, tmp_path):
    data = tmp_path / "mine.csv"
    data.write_text(labelled_file.read_text())

    def interrupt(line):
        if line["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(training.Interrupted):
        finetune(with_(options, data=str(data)), Watcher(lambda message: None, interrupt))
    with pytest.raises(ValueError, match=r"leave out --lr 0\.5 \(was 0\.01\)"):
        finetune(FinetuneOptions(output=options.output, resume=True, lr=0.5), SILENT)
    data.write_text(data.read_text() + "the film,good\n")
    with pytest.raises(ValueError, match="started with other data"):
        finetune(FinetuneOptions(output=options.output, resume=True), SILENT)


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("options.json", '"lr": 0.01', '"lr": 0.03'),
        ("history.jsonl", '"step": 2, "loss": ', '"step": 2, "loss": 1'),
        ("history.jsonl", '"step": 2, "loss": ', '"step": 2, "lost": '),
    ],
)
def test_a_record_that_has_changed_under_a_stopped_run_is_named(options, name, old, new):
    def interrupt(line):
        if line["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(training.Interrupted):
        finetune(options, Watcher(lambda message: None, interrupt))
    file = options.output / name
    sound = file.read_text()
    assert sound.count(old) == 1
    file.write_text(sound.replace(old, new))
    damaged = file.read_bytes()
    again = FinetuneOptions(output=options.output, resume=True)
    with pytest.raises(ValueError, match=rf"{name} is not what "):
        finetune(again, SILENT)
    assert file.read_bytes() == damaged
    file.write_text(sound)
    finetune(again, SILENT)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"rank": 0}, "--rank must be at least 1"),
        ({"lr": float("nan")}, "--lr must be finite"),
        ({"rtol": 1.5}, r"--rtol must be in \[0, 1\)"),
        ({"eval_fraction": 0.0}, r"--eval-fraction must be in \(0, 1\)"),
        ({"budget": 10, "rtol": 0.1}, "--budget and --rtol are different rank rules"),
        ({"budget": 20}, "--budget must be at least .* one direction for each of the"),
        ({"rtol": 0.1, "fixed_rank": True}, "--rtol and --fixed-rank"),
        ({"resume": True, "overwrite": True}, "--resume .* --overwrite"),
        ({"data": None, "text_column": "x"}, "--text-column needs --data"),
        ({"beta": -0.1}, r"beta=.* must be finite and not negative, got -0\.1"),
        ({"rule": "adagrad"}, "--rule must be one of adam, sgd"),
        ({"model": "no/such-model-here"}, "no model could be loaded from 'no/such-model-here'"),
        ({"select": ("querry",)}, "'querry' matches no linear layer. Did you mean 'query'"),
    ],
)
def test_options_that_cannot_work_are_named(options, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(with_(options, **change), SILENT)
    assert not options.output.exists()
