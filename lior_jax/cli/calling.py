"""Names of the programs as started: `lior train` for the installed command, `train.py` in the source tree."""

import sys
from pathlib import Path

COMMAND = "lior"


def program(name: str) -> str:
    """A program's name in its own usage and errors: `lior train`, or `train.py`."""
    return f"{COMMAND} {name}" if _by_command() else f"{name}.py"


def start(name: str) -> str:
    """The command that starts a program, for advice to copy into a terminal: `lior train`, or `python train.py`."""
    return f"{COMMAND} {name}" if _by_command() else f"python {name}.py"


def _by_command() -> bool:
    return Path(sys.argv[0]).stem == COMMAND
