"""Every notebook runs from top to bottom, and what is kept of it reads well: no errors, no noise, nobody's folders."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ABSOLUTE = re.compile(r"(?<![\w.\"'(=<])/(?:home|root|tmp|var|usr|opt|mnt|work|Users|private)/|[A-Z]:\\\\")
NOISE = re.compile(r"Traceback|Warning|WARNING|\x1b\[|it/s\]|step/s")


def by_name(path):
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=by_name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """The texts of a cell's outputs."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def test_the_notebooks_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 4


def test_kept_outputs_are_of_one_run_from_top_to_bottom(notebook):
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_of(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code_of(notebook) for output in cell.outputs) >= 2


def test_kept_outputs_have_no_errors_and_no_noise(notebook):
    for cell in code_of(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
        for text in texts(cell):
            assert not NOISE.search(text), text
            assert not ABSOLUTE.search(text), text
        assert not ABSOLUTE.search(cell.source), cell.source
        assert "execution" not in cell.metadata, "times of one run"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebook_runs(path, monkeypatch):
    """In a kernel of its own, with this source before any that is installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    before = [len(cell.outputs) > 0 for cell in code_of(notebook)]
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()  # an error in a cell is raised
    assert [len(cell.outputs) > 0 for cell in code_of(notebook)] == before
