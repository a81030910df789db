"""SmolLM2-135M with a fifth of its linear layers' parameters removed: cut, shared out, healed.

Everything is calibrated and healed on passages of the King James Bible, and measured on others of
it, and on docstrings of Python's standard library, which nothing was calibrated or healed on.
`python benchmarks/compress_lm.py` writes `compress_lm.md` and a record for each seed.
"""

import ast
import copy
import json
import random
import statistics
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from king_james import passages
from tables import spread, table

import rankwise as rw
from rankwise.compress import calibrate, cut_weights
from rankwise.recipes.classifier import load_pretrained
from rankwise.recipes.cuts import uniform_ranks
from rankwise.recipes.king_james import king_james
from rankwise.recipes.language_subject import LanguageSubject
from rankwise.recipes.smollm2 import smollm2_folder
from rankwise.recipes.subject import healing_loss
from rankwise.recipes.training import warm_up_and_decay

KEEPS = (0.9, 0.8, 0.6)
HEALED = 0.8
HELD_OUT, CALIBRATION, BATCH = 24, 48, 4
DOCSTRING_TOKENS = 128
INPUTS_ONLY = (1e-6, 1e6)
"""Damping with which output gradients say nothing: whitening by inputs, as SVD-LLM does it."""


@dataclass(frozen=True)
class Options:
    """Compress a language model in several ways, and heal it."""

    output: Path = Path("runs/compress_lm")
    """Folder of the records and the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the passages for calibration and healing, and their order."""
    steps: int = 24
    """Of healing; 0 for none."""
    passages: int = 8
    """In a step of healing."""
    lr: float = 3e-3
    distill: float = 0.0
    """Weight of what the original says beside the text."""
    watch: int = 0
    """Steps between two looks at the held-out passages while healing, for choosing a rate."""


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    records = [record(seed, options) for seed in options.seeds]
    text = report(records)
    (options.output / "compress_lm.md").write_text(text)
    print(text)


def record(seed: int, options: Options) -> dict[str, Any]:
    file = options.output / f"seed-{seed}.json"
    if not file.exists():
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(run(seed, options), indent=2))
        partial.replace(file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def run(seed: int, options: Options) -> dict[str, Any]:
    torch.manual_seed(seed)
    language_model, tokenizer = load_pretrained(smollm2_folder(), "AutoModelForCausalLM")
    texts = passages(tokenizer, king_james())
    random.Random(99).shuffle(texts)
    held_out, train = texts[:HELD_OUT], texts[HELD_OUT:]
    random.Random(seed).shuffle(train)
    subject = LanguageSubject("SmolLM2-135M", language_model, tokenizer, train, held_out)
    other = LanguageSubject("docstrings", language_model, tokenizer, [], docstrings(tokenizer))
    model = subject.model
    model.requires_grad_(False)

    def losses(m: torch.nn.Module) -> dict[str, float]:
        return {"bible": subject.measure(m)["loss"], "docstrings": other.measure(m)["loss"]}

    start = time.perf_counter()
    found = calibrated(subject)
    seconds = {"calibration": time.perf_counter() - start}
    whitened = calibrated(subject, damping=INPUTS_ONLY)
    shapes = {name: layer.shape for name, layer in found.layers.items()}
    cuts: dict[str, Any] = {"original": losses(model)}
    for keep in KEEPS:
        alike = uniform_ranks(shapes, keep)
        ways = {
            "truncated SVD, alike": (alike, rw.init.TruncatedSVD()),
            "whitened by inputs, alike": (alike, whitened),
            "metric of the loss, alike": (alike, found),
            "whitened by inputs, shared out": (whitened.ranks(keep), whitened),
            "metric of the loss, shared out": (found.ranks(keep), found),
        }
        for name, (ranks, init) in ways.items():
            with cut_weights(model, ranks, init):
                cuts[f"{name}, {keep:g}"] = losses(model)
            print(seed, name, keep, cuts[f"{name}, {keep:g}"], flush=True)
    healed = copy.deepcopy(model)
    rw.factorize_(healed, rank=found.ranks(HEALED), init=found)
    del found, whitened
    start = time.perf_counter()
    heal_(healed, subject, model, seed, options)
    seconds["healing"] = time.perf_counter() - start
    cuts[f"metric of the loss, shared out, healed, {HEALED:g}"] = losses(healed)
    print(seed, "healed", losses(healed), seconds, flush=True)
    return {"losses": cuts, "seconds": seconds, "steps": options.steps, "lr": options.lr}


def calibrated(subject: LanguageSubject, **options: Any) -> rw.compress.Calibration:
    """In batches, of the first passages of the seed's order."""
    batches = [subject.batch(range(start, start + BATCH)) for start in range(0, CALIBRATION, BATCH)]
    return calibrate(subject.model, batches, subject.sampled_loss, select=subject.select, **options)


def heal_(
    model: torch.nn.Module,
    subject: LanguageSubject,
    original: torch.nn.Module,
    seed: int,
    options: Options,
) -> None:
    """Factors and norms train, at fixed ranks."""
    for layer in model.modules():
        if isinstance(layer, rw.LowRankLinear):
            layer.requires_grad_(True)
    optimizer = rw.Optimizer(model, lr=options.lr, max_step=options.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_decay(options.steps))
    for step in range(options.steps):
        first = step * options.passages
        batch = subject.batch(range(first, first + options.passages))
        optimizer.zero_grad()
        begin = time.perf_counter()
        loss = healing_loss(subject, model, original, batch, options.distill)
        loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        schedule.step()
        print(
            f"{seed} step {step} loss {loss.item():.3f}, {middle - begin:.1f} s for the gradient, "
            f"{time.perf_counter() - middle:.1f} s for the step",
            flush=True,
        )
        if options.watch and (step + 1) % options.watch == 0:
            print("held out", subject.measure(model), flush=True)


def docstrings(tokenizer: Any) -> list[list[int]]:
    """The first tokens of docstrings of modules in Python's standard library, in their order."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        tokens = tokenizer(text)["input_ids"][:DOCSTRING_TOKENS]
        if len(tokens) == DOCSTRING_TOKENS:
            found.append(tokens)
    return found[:HELD_OUT]


def report(records: list[dict[str, Any]]) -> str:
    lines = [["of the parameters kept, way", "Bible", "docstrings"]]
    for name in records[0]["losses"]:
        values = [record["losses"][name] for record in records]
        cells = [spread([v[text] for v in values], ".3f") for text in ("bible", "docstrings")]
        lines.append([name, *cells])
    took = {k: statistics.fmean(r["seconds"][k] for r in records) for k in records[0]["seconds"]}
    note = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    return f"{table(lines)}\n{note}\n"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
