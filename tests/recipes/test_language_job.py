"""Fine-tuning a tiny causal language model: files, exactness, refusals."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise as rw
from language_models import WORDS, conversations, json_lines, llama, saved, tokenizer
from rankwise.cli.main import main
from rankwise.recipes import training
from rankwise.recipes.finetune import Outcome, finetune
from rankwise.recipes.history import Watcher
from rankwise.recipes.king_james import king_james
from rankwise.recipes.language import load_causal
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.packages import cache_folder
from rankwise.recipes.smollm2 import smollm2_folder

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
STEPS = 12
TIMED = ("seconds_per_step", "peak_memory_bytes", "options")
MEASURED = ("seconds", "memory", "peak_memory")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def options(model_folder: Path, tmp_path: Path) -> FinetuneOptions:
    data = json_lines(tmp_path / "chat.jsonl", conversations(60))
    return FinetuneOptions(
        model=str(model_folder), data=str(data), rank=4, steps=STEPS, lr=1e-2, max_length=64,
        sample_tokens=6, output=tmp_path / "run", save_every=4,
    )  # fmt: skip


def with_(options: FinetuneOptions, **changes) -> FinetuneOptions:
    return dataclasses.replace(options, **changes)


def untimed(outcome: Outcome) -> tuple:
    metrics = {k: v for k, v in outcome.metrics.items() if k not in TIMED}
    return metrics, [
        {k: v for k, v in line.items() if k not in MEASURED} for line in outcome.history
    ]


def test_the_folder_holds_what_is_promised(options):
    told = []
    outcome = finetune(options, SILENT._replace(tell=told.append))
    folder, metrics = options.output, outcome.metrics
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert "conversations, which train a language model" in told[0]
    assert f"{metrics['data']['examples']} examples of" in told[1]
    assert metrics["data"]["examples"] + metrics["data"]["held_out_examples"] == 60
    assert metrics["data"]["rows"] < metrics["data"]["examples"]
    assert len(metrics["ranks"]) == 14 and metrics["steps"] == STEPS
    assert metrics["eval_perplexity"] == pytest.approx(
        float(torch.tensor(metrics["eval_loss"]).double().exp())
    )
    assert metrics["eval_loss"] != metrics["eval_loss_before"]
    memory = metrics["memory"]
    assert memory["base_bytes"] == 4 * sum(p.numel() for p in llama().parameters())
    assert memory["adapter_bytes"] > 0 and memory["optimizer_bytes"] > 0
    assert len(metrics["samples"]) == 3
    page = (folder / "samples.md").read_text()
    for sample in metrics["samples"]:
        assert set(sample["reference"].split()) <= set(WORDS)
        assert f"    {sample['reference'].strip()}" in page
    config = json.loads((folder / "lora" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == options.model
    assert (folder / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_training_learns_what_the_answers_have_in_common(options):
    metrics = finetune(with_(options, steps=150, fixed_rank=True), SILENT).metrics
    assert metrics["eval_loss"] < 0.97 * metrics["eval_loss_before"]


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize(
    "change", [{}, {"bfloat16": True, "checkpointing": True, "pack": False}, {"quantize": "4bit"}]
)
def test_an_interrupted_run_goes_on_exactly(options, tmp_path, stop, change):
    if "quantize" in change:
        pytest.importorskip("bitsandbytes", reason="needs `pip install bitsandbytes`")
    options = with_(options, **change)
    whole = finetune(with_(options, output=tmp_path / "whole"), SILENT)

    def interrupt(line):
        if line["step"] == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(training.Interrupted, match=f"after step {stop}.*--resume"):
        finetune(options, SILENT._replace(step=interrupt))
    assert not (options.output / "metrics.json").exists()
    resumed = finetune(FinetuneOptions(output=options.output, resume=True), SILENT)
    assert untimed(resumed) == untimed(whole)
    one, other = (
        load_file(f / "adapter.safetensors") for f in (tmp_path / "whole", options.output)
    )
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) == 0.0


def test_checkpointing_changes_no_number(options, tmp_path):
    plain = finetune(options, SILENT)
    kept = finetune(with_(options, checkpointing=True, output=tmp_path / "kept"), SILENT)
    assert untimed(plain) == untimed(kept)


def test_the_loss_of_the_first_step_is_that_of_the_model_as_it_was(options):
    outcome = finetune(with_(options, steps=1, batch_size=1000, eval_data=options.data), SILENT)
    first = outcome.history[0]["loss"]
    assert first == pytest.approx(outcome.metrics["eval_loss_before"], rel=1e-5)


def test_the_export_reloads_through_peft_with_the_same_logits(options):
    from peft import PeftModel

    finetune(options, SILENT)
    ours, words = load_causal(options.model)
    ids = words("<|user|>one two<|end|><|assistant|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = ours(input_ids=ids).logits
        rw.load(ours, options.output)
        theirs = PeftModel.from_pretrained(load_causal(options.model)[0], options.output / "lora")
        one, other = ours.eval()(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert (one - before).abs().max() > 1e-4


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_model_trains_and_tells_what_it_cost(options, tmp_path, bits):
    if bits == "4bit":
        pytest.importorskip("bitsandbytes", reason="needs `pip install bitsandbytes`")
    options = with_(options, fixed_rank=True)
    plain = finetune(with_(options, output=tmp_path / "plain"), SILENT).metrics
    metrics = finetune(with_(options, quantize=bits), SILENT).metrics
    assert metrics["eval_loss_unquantised"] == plain["eval_loss_before"]
    assert 0 < abs(metrics["eval_loss_before"] - plain["eval_loss_before"]) < 0.5
    assert metrics["quantised_to"].startswith({"8bit": "int8", "4bit": "NF4"}[bits])
    memory = metrics["memory"]
    assert memory["base_bytes_unquantised"] == plain["memory"]["base_bytes"]
    assert memory["base_bytes"] != memory["base_bytes_unquantised"]
    assert memory["adapter_bytes"] == plain["memory"]["adapter_bytes"]


def test_text_and_completions_train_too(options, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(" ".join(WORDS[i % 5 :]) for i in range(40)))
    metrics = finetune(with_(options, data=str(text)), SILENT).metrics
    assert metrics["data"]["form"] == "text"
    assert metrics["data"]["counted_tokens"] < metrics["data"]["tokens"]
    rows = [{"prompt": f"{a} ", "completion": b} for a in WORDS for b in WORDS]
    pairs = with_(options, data=str(json_lines(tmp_path / "pairs.jsonl", rows)))
    masked = finetune(with_(pairs, output=tmp_path / "masked"), SILENT).metrics
    everything = finetune(
        with_(pairs, train_on_prompts=True, output=tmp_path / "everything"), SILENT
    ).metrics
    assert masked["data"]["form"] == "prompts with completions"
    assert masked["data"]["tokens"] == everything["data"]["tokens"]
    assert masked["data"]["counted_tokens"] < everything["data"]["counted_tokens"]


def test_without_samples_there_is_no_page_of_them(options):
    metrics = finetune(with_(options, sample_tokens=0), SILENT).metrics
    assert metrics["samples"] == [] and not (options.output / "samples.md").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head_lr": 0.1}, "--head-lr is for a classifier; with these data a language model"),
        ({"max_length": 65}, "--max-length 65 is beyond the model's 64 positions"),
        ({"max_length": 3}, "no example to train on has a counted token within --max-length 3"),
        ({"sample_tokens": -1}, "--sample-tokens must not be negative"),
        ({"select": ("q_porj",)}, "'q_porj' matches no linear layer. Did you mean 'q_proj'"),
        ({"model": "no/such-model-here"}, "'no/such-model-here' is no folder or hub name"),
        ({"data": None, "task": "language"}, "king-james is built in"),
    ],
)
def test_options_that_cannot_work_are_named(options, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(with_(options, **change), SILENT)
    assert not options.output.exists()


@pytest.mark.parametrize(
    "change, flag",
    [
        ({"pack": False}, "--no-pack"),
        ({"quantize": "4bit"}, "--quantize"),
        ({"bfloat16": True}, ""),
    ],
)
def test_a_classifier_refuses_what_is_for_language_models(labelled_file, change, flag):
    with pytest.raises(ValueError, match=f"{flag}.* is for a language model"):
        finetune(FinetuneOptions(data=str(labelled_file), **change), SILENT)


def test_an_encoder_is_refused_for_language_data(options, tiny_encoder):
    with pytest.raises(ValueError, match="does not predict a next token"):
        finetune(with_(options, model=str(tiny_encoder)), SILENT)


def test_a_model_without_chat_template_is_refused_for_conversations(options, tmp_path):
    folder = saved(tmp_path / "plain", template=None)
    with pytest.raises(ValueError, match="chat.jsonl: the tokenizer .* has no chat template"):
        finetune(with_(options, model=str(folder)), SILENT)


def test_one_line_is_too_little(options, tmp_path):
    data = json_lines(tmp_path / "one.jsonl", conversations(1))
    with pytest.raises(ValueError, match="it makes 1 example .* one has to be held out"):
        finetune(with_(options, data=str(data)), SILENT)


def test_the_command_shows_scores_and_samples(options, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["finetune", "--data", options.data, "--model", options.model, "--steps", "3"]
    arguments += ["--max-length", "64", "--sample-tokens", "4", "--output", str(options.output)]
    assert main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "conversations, which train a language model", "held-out prompt", "held-out perplexity",
        "frozen model", "samples.md", "PEFT",
    ):  # fmt: skip
        assert words in printed


def test_the_ready_model_and_text_are_what_they_are_said_to_be():
    models = cache_folder() / "models"
    if not list(models.glob("SmolLM2*")) or not (cache_folder() / "king-james.txt").exists():
        pytest.skip("SmolLM2 and the King James text are not in the cache; nothing is downloaded")
    model, words = load_causal(smollm2_folder())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    verses = king_james()
    assert verses[0].startswith("In the beginning God created") and len(verses) > 31_000
    ids = words("\n".join(verses[:6]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < 3.0


def test_the_tiny_tokenizer_reads_back_what_it_wrote():
    words = tokenizer()
    assert words.decode(words("one größer\n")["input_ids"]) == "one größer\n"
