"""Experiment trackers: against fakes of their clients' interfaces and, where a client is installed, against itself offline."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lior_jax import training
from lior_jax.errors import UserError
from lior_jax.registry import TRACKERS
from lior_jax.training import events, metrics, tracking
from tests.runs import Listener


class Client:
    """Calls of a fake client."""

    def __init__(self):
        self.logged: dict[tuple[str, int], float] = {}
        self.config: dict = {}
        self.closed = 0

    def log(self, values, step):
        self.logged |= {(name, step): value for name, value in values.items()}

    def close(self, *_):
        self.closed += 1


def fake(name: str, client: Client) -> ModuleType:
    """A module with as much of the client's interface as is used, by the names and arguments of its documentation."""
    module = ModuleType(name)
    if name == "wandb":

        def init(*, project, name, dir, config):
            client.config = config
            return SimpleNamespace(log=lambda data, *, step: client.log(data, step), finish=client.close)

        module.init = init
    elif name == "mlflow":

        def log_params(params):
            assert len(params) <= 100
            client.config |= params

        module.set_experiment = lambda experiment_name: None
        module.start_run = lambda *, run_name: None
        module.log_params = log_params
        module.log_metrics = lambda metrics, *, step: client.log(metrics, step)
        module.end_run = client.close
    else:

        class Run:
            def __init__(self, *, experiment):
                self.track = lambda value, *, name, step: client.log({name: value}, step)
                self.close = client.close

            def __setitem__(self, key, value):
                client.config[key] = value

        module.Run = Run
    return module


STARTED = [events.Step(1, 3.0, None, {"loss": 3.0, "nudge": [0.5, 0.25]}), events.Validated(4, 2.5, 2.0, 2.0, 2.885)]
LOGGED = {
    ("loss/train", 1): 3.0,
    ("soundness/nudge/0", 1): 0.5,
    ("soundness/nudge/1", 1): 0.25,
    ("loss/validation", 4): 2.0,
    ("loss/validation_nats_per_character", 4): 2.0,
    ("loss/validation_bits_per_character", 4): 2.885,
}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "aim"])
def test_every_tracker_gets_the_figures_and_is_closed(tiny, tmp_path, monkeypatch, name):
    client = Client()
    monkeypatch.setitem(sys.modules, name, fake(name, client))
    with tracking.opened(tiny("run", f"training.track={name}"), tmp_path) as (tracker,):
        for event in [*STARTED, events.Sampled(4, "text"), events.Step(2, 1.0)]:
            tracker(event)
        assert not client.closed
    assert client.logged == LOGGED
    assert client.closed == 1
    assert "5e-3" in str(client.config) or "0.005" in str(client.config)


def test_a_whole_run_is_tracked_as_it_is_written_down_and_goes_on_when_the_tracker_fails(tiny, tmp_path, monkeypatch):
    client, listener = Client(), Listener()
    calls = []

    def log(values, step):
        calls.append(step)
        if step > 4:
            raise ConnectionError("no network")
        client.log(values, step)

    good = fake("wandb", client)
    monkeypatch.setitem(sys.modules, "wandb", good)
    monkeypatch.setitem(TRACKERS._entries, "mine", lambda config, run: tracking.Tracker("mine", log, client.close))
    options = ["training.track=[wandb, mine]", "training.steps=8", "sample.tokens=0"]
    training.train(tiny("run", *options), listener)
    losses = {line["step"]: line["loss"] for line in metrics.read(tmp_path / "run") if line["kind"] == "train"}
    assert {step: value for (tag, step), value in client.logged.items() if tag == "loss/train"} == losses
    assert client.closed == 2
    assert max(calls) == 5  # and no more
    (failed,) = listener.of(events.SubscriberFailed)
    assert (failed.subscriber, failed.problem) == ("mine", "no network")
    assert "mine failed (no network); training continues." in listener.said


def test_what_cannot_be_started_is_refused_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    listener = Listener()
    with pytest.raises(UserError, match=r"training\.track: wandb cannot be imported .*; install it, or leave it out"):
        training.train(tiny("run", "training.track=wandb"), listener)
    assert not listener.events
    monkeypatch.setitem(sys.modules, "aim", SimpleNamespace(Run=lambda experiment: 1 / 0))
    with pytest.raises(UserError, match=r"aim cannot be started \(division by zero\)"):
        training.train(tiny("run", "training.track=aim"))
    with pytest.raises(UserError, match="'comet' is not a known tracker; choose one of wandb, mlflow, aim"):
        tiny("run", "training.track=comet")


def test_mlflow_itself(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.opened(tiny("run", "training.track=mlflow"), tmp_path / "run") as (tracker,):
        for event in STARTED:
            tracker(event)
    (found,) = mlflow.search_runs(experiment_names=[tracking.PROJECT], output_format="list")
    assert found.data.metrics["loss/validation"] == 2.0
    assert found.data.params["model.width"] == "16"


def test_aim_itself(tiny, tmp_path, monkeypatch):
    aim = pytest.importorskip("aim")
    monkeypatch.chdir(tmp_path)
    with tracking.opened(tiny("run", "training.track=aim"), tmp_path / "run") as (tracker,):
        for event in STARTED:
            tracker(event)
    (found,) = aim.Repo(str(tmp_path)).iter_runs()
    (loss,) = (metric for metric in found.metrics() if metric.name == "loss/validation")
    assert loss.values.last() == (4, 2.0)


def test_wandb_itself(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracking.opened(tiny("run", "training.track=wandb"), tmp_path) as (tracker,):
        for event in STARTED:
            tracker(event)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
