"""Fixtures: a configuration that trains in seconds, a corpus that it can learn, and a finished run of it."""

from pathlib import Path

import pytest

from lior_jax import config as configuration
from lior_jax import training
from lior_jax.cli.sentences import sentence
from lior_jax.settings import Config
from lior_jax.training import events

TINY = """
model: {context: 16, width: 16, blocks: 2, heads: 2, geometry: {chart_dim: 4, rank: 1, rotor_layers: 2},
        convolution: {taps: 3}, flow: {units: 16}}
optimizer: {warmup_steps: 2, learning_rate: 5e-3}
sample: {prompt: "1", tokens: 5}
training: {steps: 12, batch_size: 4, eval_every: 4, eval_windows: 8, log_every: 1, save_every: 3, keep: 2}
"""


def tiny_config(folder: Path, name: str, *overrides: str) -> Config:
    """The configuration of a run `folder / name`, on a corpus written into `folder`."""
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"{i * i % 97} is {i % 7} and {i % 5}, " for i in range(400)))
    return configuration.parse(TINY, "tiny", [f"data.path={corpus}", f"run.directory={folder / name}", *overrides])


class Listener:
    """A subscriber that keeps all events."""

    def __init__(self):
        self.events: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)

    @property
    def said(self) -> str:
        """What the program would have printed of them."""
        return "\n".join(filter(None, map(sentence, self.events)))

    def of(self, kind: type[events.Event]) -> list:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def tiny(tmp_path):
    """`tiny(name, *overrides)`, in a folder of the test's own."""
    return lambda name, *overrides: tiny_config(tmp_path, name, *overrides)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("finished")
    training.train(tiny_config(folder, "run"))
    return folder / "run"
