"""The entry point: finds the command, and turns expected errors into one line."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

INSTALL = 'pip install "rankwise[finetune]"'
EXPECTED = (ValueError, TypeError, FileNotFoundError, ImportError, RuntimeError, OSError)
BAD_INPUT, STOPPED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rankwise` with these arguments; the exit status.

    An error that a user can mend is one line on standard error and status 2; with
    `RANKWISE_TRACEBACK=1` it is raised. An interrupted run is status 130. Where `doctor` finds a
    fault it is 1.
    """
    from rankwise.recipes.training import Interrupted

    try:
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
        print(f"rankwise: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return status


def commands() -> dict[str, Callable[..., int | None]]:
    """The commands by name; their arguments are the command's, None is status 0."""
    from rankwise.cli.attack import run_attack
    from rankwise.cli.compress import run_compress
    from rankwise.cli.convert import run_convert
    from rankwise.cli.doctor import run_doctor
    from rankwise.cli.finetune import run_finetune
    from rankwise.cli.plan import run_plan
    from rankwise.cli.report import run_report
    from rankwise.cli.study import run_study
    from rankwise.cli.train import run_train

    return {
        "attack": run_attack,
        "compress": run_compress,
        "convert": run_convert,
        "doctor": run_doctor,
        "finetune": run_finetune,
        "plan": run_plan,
        "report": run_report,
        "study": run_study,
        "train": run_train,
    }


def call(known: Mapping[str, Callable[..., int | None]], arguments: Sequence[str]) -> int:
    """Parse the arguments and call the command that they name; its exit status."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError(f"the command line needs tyro: {INSTALL}") from error
    status: int | None = tyro.extras.subcommand_cli_from_dict(
        dict(known),
        prog="rankwise",
        description="Low-rank training and fine-tuning, with ranks that find themselves.",
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
