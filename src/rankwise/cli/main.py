"""The entry point: finds the command, and turns expected errors into one line."""

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from rankwise.cli.going_on import keeping_options
from rankwise.cli.warned import on_one_line

INSTALL = 'pip install "rankwise[finetune]"'
NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that tell, whenever transformers is imported, what torchao cannot do on this machine."""
EXPECTED = (ValueError, TypeError, ImportError, RuntimeError, OSError, FloatingPointError)
BAD_INPUT, STOPPED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rankwise` with these arguments; the exit status.

    An error that a user can mend is one line on standard error and status 2; with
    `RANKWISE_TRACEBACK=1` it is raised. An interrupted run is status 130. Where `doctor` finds a
    fault it is 1.
    """
    from rankwise.recipes.training import Interrupted

    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with on_one_line():
            status = call(commands(), sys.argv[1:] if arguments is None else arguments)
    except Interrupted as stop:
        print(f"\nrankwise: {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("\nrankwise: stopped; what has a checkpoint goes on with --resume", file=sys.stderr)
        return STOPPED
    except EXPECTED as error:
        if os.environ.get("RANKWISE_TRACEBACK") == "1":
            raise
        print(f"rankwise: error: {_told(error)}", file=sys.stderr)
        return BAD_INPUT
    return status


def _told(error: Exception) -> str:
    """Of the system's errors about a file, the file and the reason, without the number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def commands() -> dict[str, Callable[..., int | None]]:
    """The commands by name; their arguments are the command's, None is status 0."""
    from rankwise.cli.attack import run_attack
    from rankwise.cli.compress import run_compress
    from rankwise.cli.convert import run_convert
    from rankwise.cli.doctor import run_doctor
    from rankwise.cli.federate import run_federate
    from rankwise.cli.finetune import run_finetune
    from rankwise.cli.plan import run_plan
    from rankwise.cli.report import run_report
    from rankwise.cli.study import run_study
    from rankwise.cli.train import run_train

    return {
        "finetune": run_finetune,
        "train": run_train,
        "compress": run_compress,
        "attack": run_attack,
        "federate": run_federate,
        "plan": run_plan,
        "convert": run_convert,
        "report": run_report,
        "doctor": run_doctor,
        "study": run_study,
    }


def call(known: Mapping[str, Callable[..., int | None]], arguments: Sequence[str]) -> int:
    """Parse the arguments and call the command that they name; its exit status.

    Raises ValueError for a command that there is not. Without arguments it is `--help`.
    """
    first = arguments[0] if arguments else "--help"
    if first == "--version":
        print(f"rankwise {importlib.import_module('rankwise').__version__}")
        return 0
    if not first.startswith("-") and first not in known:
        near = difflib.get_close_matches(first, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(known)}"
        raise ValueError(f"there is no command {first!r}; {hint}")
    try:
        import tyro
    except ImportError as error:
        raise ImportError(f"the command line needs tyro: {INSTALL}") from error
    status: int | None = tyro.extras.subcommand_cli_from_dict(
        {name: keeping_options(command, arguments) for name, command in known.items()},
        prog="rankwise",
        description="Low-rank training and fine-tuning, with ranks that find themselves.",
        args=list(arguments) or [first],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
