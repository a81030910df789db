"""What is typed when a run goes on has to be what it began with."""

import functools
from collections.abc import Callable
from typing import Any

from rankwise.recipes.folder import check_same, saved_options

Command = Callable[..., int | None]


def keeping_options(command: Command, typed_again: Callable[[Any], Any]) -> Command:
    """`command`, which before it resumes a run compares what is typed with what the run began with.

    An option at its default cannot be told from one that is not typed; but typed on top of the
    options of the run, it differs from them.
    """

    @functools.wraps(command)
    def checked(*given: Any, **named: Any) -> int | None:
        for options in (*given, *named.values()):
            if getattr(options, "resume", False):
                saved = saved_options(options)
                check_same(typed_again(saved), saved, unsaid=saved)
        return command(*given, **named)

    return checked
