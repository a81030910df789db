"""Compressing tiny models of every kind: files, exact resume, refusals, what is measured."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_files import write_idx
from rankwise.io.load_plain import load_plain
from rankwise.recipes import training
from rankwise.recipes.compress import Outcome, compress
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.compress_table import table_of
from rankwise.recipes.finetune import finetune
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import network
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
STEPS = 6
MEASURED = ("seconds", "memory", "peak_memory")
PLAIN_WORDS = ("the", "film", "was", "a", "story", "cast", "and", "its")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    lines = [" ".join(PLAIN_WORDS[(i + j * j) % 8] for j in range(9)) for i in range(60)]
    path.write_text("\n".join(lines) + "\n\n")
    return str(path)


@pytest.fixture(scope="session")
def tiny_language_model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("language")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tiny_encoder: Path, texts: str, tmp_path: Path) -> CompressOptions:
    return CompressOptions(
        model=str(tiny_encoder), data=texts, keep=0.6, heal_steps=STEPS, batch_size=8,
        calibration=32, lr=1e-2, output=tmp_path / "run", save_every=2,
    )  # fmt: skip


@pytest.fixture
def loud_encoder(encoder: CompressOptions, tmp_path: Path) -> CompressOptions:
    """With weights that matter beside the embeddings, as in a trained one."""
    import shutil

    from transformers import BertModel

    folder = Path(shutil.copytree(encoder.model, tmp_path / "loud"))
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        for p in model.encoder.parameters():
            if p.ndim == 2:
                p.mul_(15.0)
    model.save_pretrained(folder)
    return dataclasses.replace(encoder, model=str(folder), keep=0.5)


@pytest.fixture
def language(tiny_language_model: Path, encoder: CompressOptions) -> CompressOptions:
    return dataclasses.replace(encoder, model=str(tiny_language_model), max_length=16)


@pytest.fixture
def classifier(encoder: CompressOptions, tmp_path: Path) -> CompressOptions:
    weights = tmp_path / "dense.safetensors"
    model = network("mlp", classes=3, channels=1, size=12, seed=0)
    save_file(model.state_dict(), weights)
    data = str(write_idx(tmp_path / "data"))
    return dataclasses.replace(encoder, model="mlp", weights=weights, data=data, keep=0.1)


@pytest.fixture(params=["encoder", "language", "classifier"])
def options(request: pytest.FixtureRequest) -> CompressOptions:
    found: CompressOptions = request.getfixturevalue(request.param)
    return found


def with_(options: CompressOptions, **changes) -> CompressOptions:
    return dataclasses.replace(options, **changes)


def untimed(outcome: Outcome) -> tuple:
    left_out = ("peak_memory_bytes", "options", "heal_seconds")
    metrics = {k: v for k, v in outcome.metrics.items() if k not in left_out}
    for name in ("before", "after"):
        metrics[name] = {k: v for k, v in metrics[name].items() if k != "latency"}
    return metrics, [
        {k: v for k, v in line.items() if k not in MEASURED} for line in outcome.history
    ]


def test_the_folder_holds_what_is_promised(options):
    outcome = compress(options, SILENT)
    folder = options.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert (folder / "compression.png").read_bytes().startswith(b"\x89PNG")
    assert f"{metrics['after']['parameters']:,}" in (folder / "table.md").read_text()
    assert "low rank:" in (folder / "plan.txt").read_text()
    card = (folder / "plain" / "README.md").read_text()
    assert "rankwise compress" in card and "load_plain" in card
    weights = load_file(folder / "plain" / "model.safetensors")
    assert sum(t.numel() for t in weights.values()) <= metrics["after"]["parameters"]
    assert metrics["after"]["parameters"] < metrics["before"]["parameters"]
    assert metrics["after"]["flops"] < metrics["before"]["flops"]
    assert metrics["steps"] == STEPS == len(outcome.history)
    assert metrics["incidents"] == {}
    assert set(metrics["curve"]) == {"plain", "calibrated"}


def test_the_plain_folder_loads_into_the_users_own_model(language, classifier):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = compress(with_(language, curve=False), SILENT)
    plain = language.output / "plain"
    dense = AutoModelForCausalLM.from_pretrained(language.model)
    loaded = load_plain(dense, plain / "model.safetensors")
    ids = AutoTokenizer.from_pretrained(plain)("the film was a story", return_tensors="pt")
    assert loaded(**ids).logits.shape[-1] == dense.config.vocab_size
    assert sum(p.numel() for p in loaded.parameters()) == outcome.metrics["after"]["parameters"]

    metrics = compress(with_(classifier, curve=False, overwrite=True), SILENT).metrics
    fresh = network("mlp", classes=3, channels=1, size=12, seed=1)
    loaded = load_plain(fresh, plain / "model.safetensors")
    assert sum(p.numel() for p in loaded.parameters()) == metrics["after"]["parameters"]


def test_a_share_is_kept_of_the_layers_in_question(options):
    metrics = compress(with_(options, curve=False, heal_steps=0), SILENT).metrics
    cut = json.loads((options.output / "cut.json").read_text())
    dense = sum(m * n for m, n in cut["shapes"].values())
    held = sum(
        cut["ranks"][name] * (m + n) if name in cut["ranks"] else m * n
        for name, (m, n) in cut["shapes"].items()
    )
    assert 0.7 * options.keep * dense < held <= options.keep * dense
    assert metrics["before"]["parameters"] - metrics["after"]["parameters"] == dense - held
    assert metrics["cut"]["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-3, abs=1e-5)


def test_healing_brings_the_loss_down(loud_encoder):
    metrics = compress(with_(loud_encoder, heal_steps=60, curve=False), SILENT).metrics
    assert metrics["after"]["loss"] < 0.5 * metrics["cut"]["loss"]


def test_a_tolerance_keeps_the_least_share_within_it(loud_encoder):
    losses, shares = [], []
    for name, tolerance in (("tight", 0.01), ("loose", 0.1)):
        asked = with_(loud_encoder, keep=None, tolerance=tolerance, heal_steps=0, curve=False)
        metrics = compress(with_(asked, output=asked.output / name), SILENT).metrics
        losses.append(metrics["cut"]["loss"])
        shares.append(metrics["keep"])
        assert losses[-1] < 2 * tolerance
    assert losses[0] < losses[1] and shares[0] > shares[1]


def test_products_and_plain_cuts_are_other_cuts(classifier, encoder):
    ranks = []
    for name, changes in (("a", {}), ("b", {"plain": True})):
        asked = with_(encoder, heal_steps=0, curve=False, output=encoder.output / name, **changes)
        ranks.append(compress(asked, SILENT).metrics["ranks"])
    assert ranks[0] != ranks[1]
    # Without a calibration, all layers of one shape have one rank.
    assert len({rank for name, rank in ranks[1].items() if "query" in name or "key" in name}) == 1


class Stop(Exception):
    """In place of a crash."""


def crashing(stop: int) -> Watcher:
    def step(line):
        if line["step"] == stop:
            raise Stop

    return Watcher(say=lambda message: None, step=step)


def interrupting(stop: int) -> Watcher:
    def step(line):
        if line["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    return Watcher(say=lambda message: None, step=step)


@pytest.mark.parametrize("stop", [1, 3])
def test_after_a_crash_or_an_interruption_the_run_goes_on_exactly(options, stop, tmp_path):
    options = with_(options, curve=False)
    whole = compress(options, SILENT)
    for number, (watcher, error) in enumerate(
        ((crashing(stop), Stop), (interrupting(stop), training.Interrupted))
    ):
        other = with_(options, output=tmp_path / f"again-{number}")
        with pytest.raises(error):
            compress(other, watcher)
        assert not (other.output / "metrics.json").exists()
        resumed = compress(with_(other, resume=True), SILENT)
        assert untimed(resumed) == untimed(whole)
        for name in ("factors.safetensors", "plain/model.safetensors"):
            a, b = (load_file(o.output / name) for o in (options, other))
            assert all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())


def test_the_table_compares_the_stages(options):
    metrics = compress(with_(options, curve=False), SILENT).metrics
    header, rows = table_of(metrics)
    cells = {row[0]: row for row in rows}
    assert header == ["", "original", "cut", "healed", "change"]
    assert cells["loss"][1:4] == [
        f"{metrics[stage]['loss']:.4f}" for stage in ("before", "cut", "after")
    ]
    ratio = metrics["after"]["parameters"] / metrics["before"]["parameters"]
    assert cells["parameters"][4] == f"x {ratio:.3f}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 1.5}, r"--keep must be in \(0, 1\), got 1.5"),
        ({"tolerance": 0.1}, "--keep and --tolerance"),
        ({"distill": 2.0}, "--distill must be in"),
        ({"heal_steps": -1}, "--heal-steps must not be negative"),
        ({"rewinds": -1}, "--rewinds must not be negative"),
        ({"plain": True, "products": True}, "no --products"),
        ({"model": "mlp", "data": None}, "has to be trained first"),
        ({"weights": Path("x.safetensors")}, "--weights are of an image classifier"),
        ({"model": "nowhere/at-all"}, "neither a built-in classifier"),
        ({"data": "missing.txt"}, "no file 'missing.txt'"),
        ({"select": ("quary",)}, "Did you mean 'query'"),
    ],
)
def test_what_a_user_gets_wrong_is_told_before_anything_is_written(encoder, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compress(with_(encoder, **changes), SILENT)
    assert not (encoder.output / "metrics.json").exists()


def test_wrong_weights_are_named(classifier, tmp_path):
    for tensors, message in (
        ({"1.weight": torch.zeros(2, 2)}, "the file has no '1.bias'"),
        ({"other": torch.zeros(2)}, "has no '1.bias'"),
    ):
        file = tmp_path / "wrong.safetensors"
        save_file(tensors, file)
        with pytest.raises(ValueError, match=message):
            compress(with_(classifier, weights=file), SILENT)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        compress(with_(classifier, weights=tmp_path / "text.safetensors"), SILENT)


def test_a_language_model_asks_for_text(language):
    with pytest.raises(ValueError, match="needs --data"):
        compress(with_(language, data=None), SILENT)


def test_other_weights_do_not_go_on_with_a_run(classifier):
    with pytest.raises(Stop):
        compress(with_(classifier, curve=False), crashing(3))
    other = network("mlp", classes=3, channels=1, size=12, seed=9)
    save_file(other.state_dict(), classifier.weights)
    with pytest.raises(ValueError, match="other weights of the model"):
        compress(with_(classifier, curve=False, resume=True), SILENT)


def test_a_shrunk_folder_is_not_taken_for_an_original(language):
    compress(with_(language, curve=False, heal_steps=0), SILENT)
    with pytest.raises(ValueError, match="is loaded as its card"):
        compress(with_(language, model=str(language.output / "plain"), overwrite=True), SILENT)


def test_gpt2_is_a_language_model_and_t5_is_refused(tiny_language_model, language, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, T5Config

    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    asked = with_(language, model=str(tmp_path / "gpt2"), curve=False, heal_steps=0)
    assert "perplexity" in compress(asked, SILENT).metrics["after"]
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="an encoder with a decoder"):
        compress(with_(asked, model=str(tmp_path / "t5"), overwrite=True), SILENT)


def test_the_first_steps_of_healing_do_no_harm(classifier):
    """Second moments of two images are rough, and would make a step of many times the rate."""
    images = read_images(classifier.data)
    model = network("mlp", classes=3, channels=1, size=12, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images.train), images.labels).backward()
        optimizer.step()
    save_file(model.state_dict(), classifier.weights)
    asked = with_(classifier, keep=0.3, heal_steps=3, lr=1e-3, batch_size=2, curve=False)
    metrics = compress(asked, SILENT).metrics
    assert metrics["after"]["loss"] < metrics["cut"]["loss"] + 0.1


def test_a_network_with_batch_norms_is_compressed_healed_and_loaded(classifier):
    model = network("cnn", classes=3, channels=1, size=12, seed=0)
    save_file(model.state_dict(), classifier.weights)
    asked = with_(classifier, model="cnn", keep=0.5, curve=False)
    metrics = compress(asked, SILENT).metrics
    fresh = network("cnn", classes=3, channels=1, size=12, seed=1)
    loaded = load_plain(fresh, asked.output / "plain" / "model.safetensors").eval()
    assert sum(p.numel() for p in loaded.parameters()) == metrics["after"]["parameters"]
    images = read_images(asked.data)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(loaded(images.test), images.test_labels)
    assert float(loss) == pytest.approx(metrics["after"]["loss"], rel=1e-4)
    # Healing moves running statistics too.
    assert not torch.equal(loaded[1].running_mean, model[1].running_mean)


def test_a_tolerance_that_everything_is_within_ends_at_the_least_share(classifier):
    asked = with_(classifier, keep=None, tolerance=1e6, heal_steps=0, curve=False)
    metrics = compress(asked, SILENT).metrics
    # One direction in each of the three layers is 1.3 % of them; a trial more would tell nothing.
    assert 0.013 < metrics["keep"] < 0.034


def test_a_run_of_another_command_is_not_resumed(classifier):
    asked = TrainOptions(data=classifier.data, steps=6, output=classifier.output, save_every=2)
    with pytest.raises(Stop):
        train_classifier(asked, crashing(3))
    with pytest.raises(ValueError, match="is of another command: it has --adversarial"):
        compress(with_(classifier, resume=True), SILENT)
    with pytest.raises(ValueError, match="is of another command"):
        finetune(FinetuneOptions(output=classifier.output, resume=True), SILENT)
