"""Names of the programs, as they were started: `lior train` by the installed command, `train.py` from the source tree."""

import sys
from pathlib import Path

COMMAND = "lior"


def program(name: str) -> str:
    """A program's name in its own usage and errors: `lior train`, or `train.py`."""
    return f"{COMMAND} {name}" if _by_command() else f"{name}.py"


def start(name: str) -> str:
    """The words that start a program, for advice that is copied into a terminal: `lior train`, or `python train.py`."""
    return f"{COMMAND} {name}" if _by_command() else f"python {name}.py"


def _by_command() -> bool:
    return Path(sys.argv[0]).stem == COMMAND
