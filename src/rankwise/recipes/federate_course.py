"""One contender's rounds: run, scored, recorded, and gone on with after a stop."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rankwise.federated import Client, RoundRecord, Server
from rankwise.io.atomic import flush
from rankwise.recipes.classifier import Score
from rankwise.recipes.history_sum import HistorySum, sum_up_to
from rankwise.recipes.training import Interrupted, asked_to_stop
from rankwise.report.history import Line, append_line, truncate_history

ROUNDS, CHECKPOINT = "rounds.jsonl", "server.safetensors"

Engine = Callable[
    [Server, Mapping[str, Client], int, Callable[[RoundRecord], object]], list[RoundRecord]
]
"""Runs so many further rounds, and tells the record of each."""


@dataclass
class Course:
    """A server and its clients, and where they write."""

    server: Server
    clients: Mapping[str, Client]
    score: Callable[[nn.Module], Score]
    run: Path
    """Folder of the whole run, to go on with."""
    folder: Path
    """Of this contender."""
    rounds: int
    save_every: int

    @property
    def begun(self) -> bool:
        """Whether a checkpoint is there to go on from."""
        return (self.folder / CHECKPOINT).exists()


def follow(course: Course, engine: Engine, report: Callable[[Line], None]) -> list[Line]:
    """Take the rounds that are left, from the checkpoint if there is one; the lines of all.

    Raises Interrupted after SIGINT or SIGTERM, between two rounds, with the state saved.
    """
    server, file = course.server, course.folder / ROUNDS
    lines: list[Line] = []
    written = HistorySum()
    if course.begun:
        checkpoint = course.folder / CHECKPOINT
        told = server.load(checkpoint).get("history")
        written = sum_up_to(file, server.number, told, checkpoint)
        lines = truncate_history(file, server.number)
    else:
        course.folder.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    for line in lines:
        report(line)
    with asked_to_stop() as asked:
        begin = time.perf_counter()

        def watch(record: RoundRecord) -> None:
            nonlocal begin
            seconds = time.perf_counter() - begin
            lines.append(line_of(record, server.model, course.score, seconds))
            # Before the checkpoint: after a kill between the two the line comes again.
            append_line(file, lines[-1])
            written.add(lines[-1])
            report(lines[-1])
            number = record.number + 1
            if number % course.save_every == 0 or number == course.rounds or asked():
                # After a power failure a state needs the lines of its rounds.
                flush(file)
                server.save(course.folder / CHECKPOINT, {"history": str(written)})
            if asked():
                raise Interrupted(number, course.run)
            begin = time.perf_counter()

        if server.number < course.rounds:
            engine(server, course.clients, course.rounds - server.number, watch)
    return lines


def line_of(
    record: RoundRecord, model: nn.Module, score: Callable[[nn.Module], Score], seconds: float
) -> Line:
    """What is written of a round; `step` is its number, from 1."""
    return {
        "step": record.number + 1,
        **score(model)._asdict(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ranks": record.ranks,
        "bytes_down": record.down,
        "bytes_up": record.up,
        "participants": len(record.participants),
        "answered": len(record.answered),
        "events": [str(event) for event in record.events],
        "seconds": seconds,
    }
