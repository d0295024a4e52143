"""Loading executes nothing: no pickle in the source, and none that is planted in a checkpoint or a tokenizer is opened."""

import ast
import gc
import json
import os
import pickle
import shutil
import sys
from contextlib import contextmanager, suppress

import pytest

from lior_jax.data import tokenizer
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.storage import checkpoint, manifest, snapshot
from tests.test_structure import sources

# Where a file of arrays cannot be read, TensorStore's threads complain to an event loop that Orbax has closed by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _complaints_end_here():
    """The complaints come when the garbage is collected, which must not wait for the test of something else."""
    yield
    gc.collect()


UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
EXECUTORS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "Loader", "allow_pickle=True"}


def dangers(source: str) -> list[str]:
    """What could execute data: unpicklers, `eval`, and loaders of YAML and NumPy that are not safe."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            names = ({(node.module or "").split(".")[0]} & UNPICKLERS) | ({alias.name for alias in node.names} & LOADERS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {node.func.id} & EXECUTORS
        elif isinstance(node, ast.Attribute):
            names = {node.attr} & (LOADERS | UNPICKLERS)
        elif isinstance(node, ast.keyword):
            names = {ast.unparse(node)} & LOADERS
        else:
            continue
        found += sorted(names)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_the_source_unpickles_and_evaluates_nothing(path):
    assert not dangers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import pandas\npandas.io.pickle.read()",
        "np.load(f, allow_pickle=True)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "from yaml import FullLoader",
        "eval(text)",
    ],
)
def test_dangers_are_found(source):
    assert dangers(source)


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


_watching: list[list[str]] = []
sys.addaudithook(lambda event, args: _watching[-1].append(f"{event} {args}") if _watching and "pickle" in event else None)


@contextmanager
def no_pickle_is_opened():
    """The interpreter itself reports every pickle that loads a function."""
    _watching.append([])
    try:
        yield
    finally:
        events = _watching.pop()
    assert not events


def test_the_watch_sees_a_pickle(tmp_path):
    with pytest.raises(AssertionError, match="mkdir"), no_pickle_is_opened():
        pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.fixture
def planted(finished_run, tmp_path):
    """`planted(name)`: a run with a pickle as that file of its best checkpoint, and a manifest to suit it."""

    def plant(name):
        run = tmp_path / name.replace("/", "_")
        shutil.copytree(finished_run, run)
        with checkpoint.open_run(run) as checkpoints:
            folder = run / checkpoint.FOLDER / str(checkpoints.best)
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
        (folder / manifest.NAME).unlink()
        manifest.commit(folder)
        return run, int(folder.name)

    return plant


def test_a_pickle_in_the_place_of_any_file_of_a_checkpoint_is_not_opened(finished_run, planted, tmp_path):
    """With a manifest that says it belongs there. It is damage, or of no account."""
    with checkpoint.open_run(finished_run) as checkpoints:
        best = checkpoints.best
    folder = finished_run / checkpoint.FOLDER / str(best)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != manifest.NAME]
    told = []
    for name in [*sorted(names), "evil.pkl"]:
        run, step = planted(name)
        with no_pickle_is_opened(), suppress(UserError):
            Engine.from_checkpoint(run, step=step)
            continue
        told.append(name)
    assert "record.json" in told
    assert any(name.startswith("params/") for name in told)
    assert not any(name.startswith("optimizer/") for name in told), "they are not opened for inference"
    assert not (tmp_path / "mark").exists()


def test_a_pickle_in_a_tokenizer_is_text(finished_run, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "mark"), protocol=0).decode()
    with no_pickle_is_opened():
        assert tokenizer.from_json({"kind": "char", "alphabet": bomb}).alphabet == bomb
        with pytest.raises(UserError, match="damaged"):
            tokenizer.from_json({"kind": "bpe", "serialized": bomb})
        with pytest.raises(UserError, match="unknown kind"):
            tokenizer.from_json({"kind": bomb})
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        with checkpoint.open_run(run) as checkpoints:
            step = checkpoints.best
        folder = run / checkpoint.FOLDER / str(step)
        record = json.loads((folder / snapshot.RECORD).read_text())
        record["tokenizer"] = {"kind": "char", "alphabet": bomb}
        (folder / snapshot.RECORD).write_text(json.dumps(record))
        (folder / manifest.NAME).unlink()
        manifest.commit(folder)
        with pytest.raises(UserError, match=r"a model of \d+ tokens and a tokenizer of \d+"):
            Engine.from_checkpoint(run, step)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json"])
def test_a_pickle_in_an_exported_model_is_not_opened(finished_run, tmp_path, name):
    folder = Engine.from_checkpoint(finished_run).export(tmp_path / "weights")
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with no_pickle_is_opened(), pytest.raises(UserError):
        Engine.from_checkpoint(folder)
    assert not (tmp_path / "mark").exists()


def test_an_exported_configuration_makes_no_objects(finished_run, tmp_path):
    folder = Engine.from_checkpoint(finished_run).export(tmp_path / "weights")
    (folder / "config.yaml").write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'mark'}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        Engine.from_checkpoint(folder)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_in_the_place_of_a_memory_is_not_opened(finished_run, tmp_path):
    (tmp_path / "memory.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with no_pickle_is_opened(), pytest.raises(UserError, match="is damaged, or not a safetensors file"):
        Engine.from_checkpoint(finished_run).with_memory(tmp_path / "memory.safetensors")
    assert not (tmp_path / "mark").exists()
