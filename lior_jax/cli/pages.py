"""Output about runs and configurations, without training: a report page, a comparison, the options."""

from collections.abc import Sequence


def report(run: str) -> None:
    """Write a page about a run, RUN/report.html, and print its path."""
    from lior_jax.analysis import report

    print(report.write(run), flush=True)


def compare(runs: Sequence[str]) -> None:
    """Print a table of runs, and draw their curves."""
    from lior_jax.analysis import compare

    table, picture = compare.compare(runs)
    print(f"{table}\n\n{picture}: the curves over steps, tokens and seconds", flush=True)


def options(section: str | None) -> None:
    """Print every key of a configuration, or of a section of it."""
    from lior_jax import options

    print(options.text(section or None), flush=True)
