"""The page of a run: all of it inside, nothing of it taken for HTML, and as much of it as there is."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from lior_jax import training
from lior_jax.analysis import page as html
from lior_jax.analysis import plots, report
from lior_jax.errors import UserError
from lior_jax.registry import RULES
from lior_jax.training import environment, metrics


class Page(HTMLParser):
    """Texts, tags that are open, and addresses that are asked for."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.open, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(finished_run):
    return report.render(finished_run)


def test_page_asks_nothing_of_a_network(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.addresses
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert "url(" not in page
    assert "@import" not in page


def test_page_says_what_was_measured(page, finished_run):
    text = " ".join(Page(page).texts)
    lines = metrics.read(finished_run)
    best = min(line["nats_per_character"] for line in lines if line["kind"] == "validation")
    assert f"{best:.4f} nats/char" in text
    summary = json.loads((finished_run / "summary.json").read_text())
    assert f"{summary['nats_per_character']:.4f} nats/char" in text
    assert f"{summary['parameters']:,}" in text
    for heading in (
        "Learning",
        "Health of the Hamiltonian echo",
        "Action",
        "Samples over time",
        "Geometry",
        "Conservation by the flows",
        "Spectra",
    ):
        assert heading in text
    assert "carry_momentum: false" in text
    volumes = [float(x) for x in re.findall(r"<td>\d+</td><td>(\d\.\d{6})</td>", page)]
    assert len(volumes) == 2
    assert all(abs(volume - 1) < 1e-3 for volume in volumes)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.slow
def test_the_page_names_the_rule_that_the_run_learned_by(tmp_path, tiny, rule):
    """In words and on the axis; nothing is said of another rule."""
    training.train(tiny("run", f"learning.rule={rule}", "training.steps=3", "sample.tokens=0"))
    text = " ".join(Page(report.render(tmp_path / "run")).texts)
    assert f"which learns by {RULES[rule].title}." in text
    assert f"Health of the {RULES[rule].title}" in text
    assert f"Left: {RULES[rule].residual};" in text
    assert not any(other.title in text for name, other in RULES.items() if name != rule)


def test_samples_are_text_and_no_html(finished_run, tmp_path):
    """Also a line that was logged with no checkpoint beside it: a run that has just begun."""
    shutil.copy(finished_run / "config.yaml", tmp_path / "config.yaml")
    evil = '</pre><script>alert("1")</script>&amp;'
    lines = [{"kind": "sample", "step": 4, "text": evil}]
    (tmp_path / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = report.write(tmp_path)
    assert written == tmp_path / "report.html"
    parsed = Page(written.read_text(encoding="utf-8"))
    assert evil in parsed.texts
    assert "script" not in parsed.tags
    text = " ".join(parsed.texts)
    assert "No step was logged yet." in text
    assert "holds no checkpoints" in text


def test_no_run_no_page(tmp_path):
    with pytest.raises(UserError, match="There is no run"):
        report.write(tmp_path / "none")


def test_the_page_shows_every_session(tmp_path, finished_run):
    shutil.copy(finished_run / "config.yaml", tmp_path / "config.yaml")
    assert "no record of where it was trained" in " ".join(Page(report.render(tmp_path)).texts)
    first = {
        "begin": "2026-01-01T10:00:00Z",
        "end": "2026-01-01T10:30:00Z",
        "from_step": 0,
        "to_step": 1200,
        "devices": {"gpu: H200": 4},
        "source": {"commit": "0123456789abcdef", "clean": False},
    }
    host = {"processor": "a <processor>", "cores": 2, "memory_bytes": 3 * 2**30, "system": "Linux"}
    second = {"begin": "2026-01-02T10:00:00Z", "end": None, "from_step": 1200, "command": ["train.py", "<b>"], "host": host}
    second["retrieval"] = "plain form (because)"
    (tmp_path / environment.FILE).write_text(json.dumps({"sessions": [first, second]}))
    parsed = Page(report.render(tmp_path))
    cells = ["2026-01-01 10:00:00", "30.0", "0 – 1,200", "4 × gpu: H200", "0123456789, changed since"]
    place = parsed.texts.index(cells[0])
    assert parsed.texts[place : place + 5] == cells
    assert "train.py <b>" in parsed.texts
    assert parsed.texts[parsed.texts.index("retrieval") + 1] == "plain form (because)"
    assert "a <processor>, 2 cores, 3.0 GiB of memory, Linux" in parsed.texts
    (tmp_path / environment.FILE).write_text("{")
    assert "environment.json is damaged" in report.render(tmp_path)


def test_the_page_fits_a_phone_and_the_dark(page):
    """What is wider than a narrow page scrolls by itself, so that the page does not."""
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('<table class="figures">') == page.count('<div class="scroll"><table class="figures">') > 0
    line = {"kind": "train", "step": 1, "loss": 1.0, "reversibility": 1e-7, "nudge": [1.0], "gradient_norm": 1.0}
    several, single = html.picture(plots.health([line]), "three"), html.picture(plots.loss_curve([line]), "one")
    assert re.search(r'<div class="scroll wide"><img [^>]* style="min-width: 6\d\dpx">', several)
    assert "min-width" not in single


@pytest.mark.parametrize("figure", [plots.loss_curve([]), plots.by_token({"a": np.ones(2)}, list("ab"), "R")])
def test_pictures_are_on_white(figure):
    """Black writing on nothing could not be read on a dark page."""
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
