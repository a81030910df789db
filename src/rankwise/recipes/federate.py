"""The job of `rankwise federate`."""

import copy
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rankwise.federated import Client, Samples, Server, run
from rankwise.io.atomic import write_text
from rankwise.io.checkpoint import save
from rankwise.io.tensor_file import write_tensors
from rankwise.recipes.comparison import score
from rankwise.recipes.federate_contenders import CONTENDERS, starts
from rankwise.recipes.federate_course import CHECKPOINT, ROUNDS, Course, Engine, follow
from rankwise.recipes.federate_options import OTHERS, FederateOptions
from rankwise.recipes.federate_table import results_of, table_of
from rankwise.recipes.folder import begin, finish, prepared, read_options
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.images import Images, fingerprint, read_images
from rankwise.recipes.split import dirichlet_split
from rankwise.report.federate_figure import draw_federation
from rankwise.report.machine import peak_memory, versions
from rankwise.report.markdown import markdown

MODEL, TABLE, FIGURE, CLIENTS = "model.safetensors", "table.md", "federate.png", "clients.json"
PACKAGES = ("rankwise", "torch", "safetensors")


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: dict[str, Any]
    histories: dict[str, list[Line]]
    folder: Path


def federate(asked: FederateOptions, watcher: Watcher) -> Outcome:
    """Train as `asked`, or go on with the run in `asked.output`; writes the folder's files.

    Raises ValueError, TypeError, FileNotFoundError, ImportError or RuntimeError for what the user
    can mend, and Interrupted when asked to stop.
    """
    options = prepared(asked)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    engine = ENGINES[options.engine]()
    watcher.say("loading data")
    data = read_images(options.data)
    held = holdings(options, data)
    courses = {
        name: course(name, model, held, options, data)
        for name, model in starts(options, data).items()
    }
    _open(options, described(held, data))
    histories = _follow_all(courses, engine, watcher)
    metrics = {
        **results_of(histories),
        "peak_memory_bytes": peak_memory(),
        "seed": options.seed,
        "options": options.to_json(),
        "versions": versions(PACKAGES),
    }
    _write(options.output, metrics, histories, courses)
    return Outcome(metrics, histories, options.output)


def in_process() -> Engine:
    """Clients one after the other, here."""
    return run


def flower() -> Engine:
    """Flower's simulation: clients in processes of their own.

    Raises ImportError, naming the extra, where Flower is not installed.
    """
    # Before the import, which reads it: nothing is told to Flower's makers.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from rankwise.integrations.flower import simulate

    return simulate


ENGINES = {"in-process": in_process, "flower": flower}


def holdings(options: FederateOptions, data: Images) -> dict[str, Tensor]:
    """Rows of the training images by client."""
    if options.clients > len(data.labels):
        raise ValueError(
            f"--clients must be at most {len(data.labels)}, the number of training images, got "
            f"{options.clients}"
        )
    parts = dirichlet_split(data.labels, options.clients, alpha=options.alpha, seed=options.seed)
    width = len(str(options.clients - 1))
    return {f"client-{i:0{width}d}": rows for i, rows in enumerate(parts)}


def described(held: Mapping[str, Tensor], data: Images) -> dict[str, Any]:
    """Of each client how many images of each class it has; and of which data that is true."""
    count = len(data.classes)
    return {
        "classes": list(data.classes),
        "images": {
            name: torch.bincount(data.labels[rows], minlength=count).tolist()
            for name, rows in held.items()
        },
        "data": fingerprint(data),
    }


def course(
    name: str,
    model: nn.Module,
    held: Mapping[str, Tensor],
    options: FederateOptions,
    data: Images,
) -> Course:
    """Server and clients of a contender, before the first round."""
    method = CONTENDERS[name].method(options)
    server = Server(
        model, method, list(held), participation=options.participation, seed=options.seed
    )
    # Clients of one process share one model: they are asked one after the other.
    shared = copy.deepcopy(model)
    clients = {
        client: Client(client, shared, method, classified, samples(client, rows, options, data))
        for client, rows in held.items()
    }
    return Course(
        server, clients, partial(score, data=data), options.output, options.output / name,
        options.rounds, options.save_every,
    )  # fmt: skip


def samples(client: str, rows: Tensor, options: FederateOptions, data: Images) -> Samples:
    x, y = data.train[rows], data.labels[rows]
    own = int(client.removeprefix("client-"))
    return Samples(x, y, batch_size=options.batch_size, seed=1_000_003 * options.seed + own)


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def _open(options: FederateOptions, clients: dict[str, Any]) -> None:
    """The folder of a new run, or of one that goes on with the same data."""
    file = options.output / CLIENTS
    if options.resume and file.exists() and read_options(file) != clients:
        raise ValueError(f"{file}: the run was started with other data")
    own = [f"{name}/{part}" for name in OTHERS for part in (ROUNDS, CHECKPOINT, MODEL)]
    begin(options, (TABLE, FIGURE, CLIENTS, *own))
    if not options.resume:
        for name in OTHERS:
            # What else is in there is not this run's.
            with suppress(OSError):
                (options.output / name).rmdir()
    write_text(file, json.dumps(clients, indent=1) + "\n")


def _follow_all(
    courses: Mapping[str, Course], engine: Engine, watcher: Watcher
) -> dict[str, list[Line]]:
    histories: dict[str, list[Line]] = {}
    watcher.expect(sum(course.rounds for course in courses.values()))
    for name, course in courses.items():
        watcher.say(CONTENDERS[name].title)
        before = sum(map(len, histories.values()))

        def report(line: Line, before: int = before) -> None:
            watcher.step({**line, "step": before + line["step"], "round": line["step"]})
            for event in line["events"]:
                watcher.tell(f"round {line['step']}: {event}")

        histories[name] = follow(course, engine, report)
    return histories


def _write(
    folder: Path,
    metrics: dict[str, Any],
    histories: Mapping[str, list[Line]],
    courses: Mapping[str, Course],
) -> None:
    """All files but `metrics.json` first: where that is, the run is complete."""
    for name, course in courses.items():
        model, file = course.server.model, course.folder / MODEL
        if CONTENDERS[name].low_rank:
            save(model, file)
        else:
            write_tensors(file, model.state_dict(), {})
    write_text(folder / TABLE, markdown(*table_of(metrics)))
    draw_federation(metrics, histories, folder / FIGURE)
    finish(folder, metrics)
