"""The command `lior`: train, infer, report, compare, options. `python train.py` and `python infer.py` are its first two."""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version

from lior_jax.cli import arguments as reading
from lior_jax.cli import calling, infer, output, pages, train

_MEANINGS = {
    "train": "train a language model, or resume a run",
    "infer": "continue texts, chat, score, remember, export",
    "report": "write a page about a run",
    "compare": "compare runs: table and picture",
    "options": "print every key of a configuration",
}


def main() -> None:
    """Run the command named by the first word with the remaining words."""
    name, words = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name == "train":
        train.main(words)
    elif name == "infer":
        infer.main(words)
    elif name in _MEANINGS:
        output.main(
            calling.program(name),
            lambda: _parse(name, words),
            lambda given: _run(name, given),
            "; choose another file or folder.",
        )
    else:
        _overview().read()


def _overview() -> reading.Parser:
    width = max(map(len, _MEANINGS)) + 2
    table = "".join(f"\n  {name:{width}}{meaning}" for name, meaning in _MEANINGS.items())
    parser = reading.Parser(
        prog=calling.COMMAND,
        usage=f"{calling.COMMAND} [-h] [--version] COMMAND ...",
        description="A language model that learns without back-propagation.",
        epilog=f"commands:{table}\n\n{calling.COMMAND} COMMAND --help for details.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lior_jax {version('lior-jax')}")
    parser.add_argument("command", metavar="COMMAND", choices=list(_MEANINGS), help=argparse.SUPPRESS)
    return parser


def _parse(name: str, words: list[str]) -> argparse.Namespace:
    meaning = _MEANINGS[name]
    parser = reading.Parser(prog=calling.program(name), description=f"{meaning[0].upper()}{meaning[1:]}.")
    if name == "report":
        parser.add_argument("run", metavar="RUN", type=reading.path, help="folder of the run; the page is RUN/report.html")
    elif name == "compare":
        parser.add_argument("runs", metavar="RUN", type=reading.path, nargs="+", help="folders of the runs")
    else:
        parser.add_argument("section", metavar="SECTION", nargs="?", help="a section or key only, such as model.flow")
    return parser.read(words)


def _run(name: str, given: argparse.Namespace) -> None:
    show: dict[str, Callable[[], None]] = {
        "report": lambda: pages.report(given.run),
        "compare": lambda: pages.compare(given.runs),
        "options": lambda: pages.options(given.section),
    }
    show[name]()


if __name__ == "__main__":
    main()
