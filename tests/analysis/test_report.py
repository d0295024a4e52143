"""The page of a run: all of it inside, nothing of it taken for HTML, and as much of it as there is."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from lior_jax import training
from lior_jax.analysis import report
from lior_jax.errors import UserError
from lior_jax.registry import RULES
from lior_jax.training import metrics


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
        "What the flows keep",
        "Spectra",
    ):
        assert heading in text
    assert "carry_momentum: false" in text
    volumes = [float(x) for x in re.findall(r"<td>\d+</td><td>(\d\.\d{6})</td>", page)]
    assert len(volumes) == 2
    assert all(abs(volume - 1) < 1e-3 for volume in volumes)


@pytest.mark.parametrize("rule", RULES)
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
