"""Fine-tuned adapters under word-level noise, with and without the regulariser of RobustDLRT.

Runs `rankwise finetune` on the movie reviews for each strength `beta` and seed, at the recipe's
defaults otherwise, and scores the held-out texts as they are, with typing errors and with words
left out. Noise is the same for all strengths. A record of each run is kept in `--output`.
"""

import json
import math
import random
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import write_record
from tables import spread, table
from torch import nn

from rankwise.io.checkpoint import load
from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.classifier import Pretrained, encode, pretrained_classifier
from rankwise.recipes.examples import Example
from rankwise.recipes.finetune import finetune
from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.history import Watcher
from rankwise.recipes.options import BUILTIN_LENGTH, FinetuneOptions
from rankwise.robust import condition_numbers

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
WORD = re.compile(r"[A-Za-z]{4,}")
ROWS_AT_ONCE = 50

Record = dict[str, Any]
Corruption = Callable[[str, float, random.Random], str]


@dataclass(frozen=True)
class Options:
    """Fine-tune with and without the regulariser, and score on noisy texts."""

    output: Path = Path("runs/word-noise")
    """Folder of the records and the table; runs that have a record are not repeated."""
    betas: tuple[float, ...] = (0.1, 1.0)
    """Strengths, beside none."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the split, the training and the noise."""
    steps: int = 150
    texts: int = 1000
    """Held-out texts to score, at most."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    arms: list[float | None] = [None, *options.betas]
    found = {(s, beta): record_of(options, beta, s) for s in options.seeds for beta in arms}
    text = report({beta: [found[s, beta] for s in options.seeds] for beta in arms})
    (options.output / "word_noise.md").write_text(text)
    print(text)


def record_of(options: Options, beta: float | None, seed: int) -> Record:
    """Of a finished run, or of one that is run or gone on with now."""
    folder = options.output / f"beta-{name_of(beta)}-seed-{seed}"
    path, steps = folder / "record.json", options.steps
    watcher = Watcher(lambda told: print(folder.name, told, flush=True), lambda _: None)
    if not (folder / METRICS).exists():
        settings = FinetuneOptions(beta=beta, seed=seed, steps=steps, output=folder, threads=1)
        if (folder / OPTIONS).exists():
            settings = FinetuneOptions(output=folder, resume=True, threads=1)
        finetune(settings, watcher)
    if not path.exists():
        watcher.say("scoring noisy texts")
        write_record(path, measured(folder, seed, options.texts))
    return dict(json.loads(path.read_text()))


def name_of(beta: float | None) -> str:
    return "none" if beta is None else f"{beta:g}"


def measured(folder: Path, seed: int, texts: int) -> Record:
    """What the run in `folder` has left, and its answers to each text as it is and with noise."""
    metrics = json.loads((folder / METRICS).read_text())
    data = movie_reviews(seed)
    pretrained = pretrained_classifier(minilm_folder(), len(data.classes), seed)
    load(pretrained.model, folder)
    held_out = data.held_out[:texts]
    condition, ranks = condition_numbers(pretrained.model), metrics["ranks"]
    return {
        "condition": [condition[f"encoder.{name}"] for name in ranks],
        "mean_rank": statistics.fmean(ranks.values()),
        "scores": {
            name: answers(pretrained, noisy(held_out, corrupt, p, seed))
            for name, corrupt, p in NOISES
        },
    }


@torch.no_grad()
def answers(pretrained: Pretrained, examples: list[Example]) -> Record:
    """Mean cross-entropy, and for each text whether the answer is right."""
    model = pretrained.model.eval()
    loss, right = 0.0, torch.zeros(len(examples), dtype=torch.int)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].text))
    for start in range(0, len(order), ROWS_AT_ONCE):
        places = order[start : start + ROWS_AT_ONCE]
        batch = encode(pretrained.tokenizer, [examples[i] for i in places], BUILTIN_LENGTH)
        labels = batch.pop("labels")
        logits = model(**batch)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right[places] = (logits.argmax(1) == labels).int()
    return {"loss": loss / len(examples), "right": right.tolist()}


def noisy(examples: list[Example], corrupt: Corruption, p: float, seed: int) -> list[Example]:
    """The examples with noise that depends on their order, `p` and `seed` alone."""
    draw = random.Random(f"{corrupt.__name__}/{p}/{seed}")
    return [Example(corrupt(example.text, p, draw), example.label) for example in examples]


def mistyped(text: str, p: float, draw: random.Random) -> str:
    """Each word of at least four letters is hit with probability `p`."""
    return WORD.sub(lambda w: mistype(w[0], draw) if draw.random() < p else w[0], text)


def mistype(word: str, draw: random.Random) -> str:
    """Two neighbours swapped, or one letter dropped, doubled or hit on a neighbouring key."""
    kind, i = draw.randrange(4), draw.randrange(len(word))
    if kind == 0:
        i = min(i, len(word) - 2)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    other = ("", 2 * word[i], beside(word[i], draw))[kind - 1]
    return word[:i] + other + word[i + 1 :]


def beside(letter: str, draw: random.Random) -> str:
    """The letter of a neighbouring key of the same row, in the same case."""
    (row,) = (row for row in ROWS if letter.lower() in row)
    i = row.index(letter.lower())
    found = draw.choice(row[max(i - 1, 0) : i] + row[i + 1 : i + 2])
    return found.upper() if letter.isupper() else found


def thinned(text: str, p: float, draw: random.Random) -> str:
    """Each word is left out with probability `p`."""
    return " ".join(word for word in text.split() if draw.random() >= p)


NOISES: tuple[tuple[str, Corruption, float], ...] = (
    ("clean", mistyped, 0.0),
    *((f"typing errors {p:.0%}", mistyped, p) for p in (0.1, 0.3)),
    *((f"words left out {p:.0%}", thinned, p) for p in (0.1, 0.3)),
)


def report(records: dict[float | None, list[Record]]) -> str:
    """One row a noise and strength; in brackets the deviation over seeds, of differences by seed.

    Beside a difference of accuracies stands its standard error over texts: that of the mean, over
    the texts of all seeds, of `right - right without`, each -1, 0 or 1.
    """
    lines = [["texts", "beta", "accuracy, %", "to none", "+- over texts", "loss", "to none"]]
    shapes = [["beta", "largest condition number", "median condition number", "mean rank"]]
    for name, _, _ in NOISES:
        plain = [r["scores"][name] for r in records[None]]
        for beta, runs in records.items():
            own = [r["scores"][name] for r in runs]
            lines.append([name, name_of(beta), *_cells(own, [] if beta is None else plain)])
    for beta, runs in records.items():
        worst = spread([max(r["condition"]) for r in runs], ".1f")
        median = spread([statistics.median(r["condition"]) for r in runs], ".1f")
        ranks = spread([r["mean_rank"] for r in runs], ".2f")
        shapes.append([name_of(beta), worst, median, ranks])
    return table(lines) + "\n" + table(shapes)


def _cells(own: list[Record], plain: list[Record]) -> list[str]:
    percent = [_percent(score) for score in own]
    cells = [spread(percent, ".1f"), "", "", spread([score["loss"] for score in own], ".4f"), ""]
    if plain:
        pairs = list(zip(own, plain, strict=True))
        changes = [a - b for s, t in pairs for a, b in zip(s["right"], t["right"], strict=True)]
        cells[1] = spread([_percent(s) - _percent(t) for s, t in pairs], "+.2f")
        cells[2] = f"{100 * statistics.pstdev(changes) / math.sqrt(len(changes)):.2f}"
        cells[4] = spread([s["loss"] - t["loss"] for s, t in pairs], "+.4f")
    return cells


def _percent(score: Record) -> float:
    return 100 * statistics.fmean(score["right"])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
