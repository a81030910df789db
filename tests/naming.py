"""Names of test cases that every process gives alike."""

import re


def told(value: object) -> str:
    """`repr` without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
