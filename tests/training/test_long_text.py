"""Runs on a text that is mapped from the cache, and texts with characters outside the vocabulary."""

import io

import pytest

from lior_jax import training
from lior_jax.cli import train as program
from lior_jax.cli.progress import Bar
from lior_jax.data import corpus
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.training import dry_run, events, reporting, signals
from tests.runs import Listener
from tests.training.test_resume import assert_same_run


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Every text is a long one."""
    monkeypatch.setenv("LIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "IN_MEMORY", 100)
    return tmp_path / "cache"


def test_a_run_on_a_mapped_text_is_that_on_the_same_text_in_memory_and_is_resumed(tiny, tmp_path, cached, monkeypatch):
    listener = Listener()
    training.train(tiny("mapped"), listener, stop_after=6)
    kinds = [type(event).__name__ for event in listener.events]
    assert kinds[: kinds.index("Started")] == ["Tokenising"] * kinds.index("Started")
    training.train(tiny("mapped"), resume=True)
    monkeypatch.setattr(corpus, "IN_MEMORY", 2**24)
    training.train(tiny("short"))
    assert_same_run(tmp_path / "mapped", tmp_path / "short")


def test_preparing_makes_the_tokens_that_a_run_finds(tiny, tmp_path, cached, capsys):
    program.prepare(tiny("run"))
    said = capsys.readouterr().out
    assert "tokens for training" in said
    assert str(cached / "text") in said
    assert not (tmp_path / "run").exists()
    done = []
    dry_run.report(tiny("run"), lambda what, *_: done.append(what))
    assert set(done) == {"checking"}


def test_a_short_text_needs_no_preparing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIOR_CACHE", str(tmp_path / "cache"))
    program.prepare(tiny("run"))
    assert "not cached, since every run tokenises so short a text" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_signal_while_the_text_is_tokenised_leaves_no_run(tiny, tmp_path, cached):
    stop = signals.Stop()

    def press(event):
        if isinstance(event, events.Tokenising) and event.what == "tokenising":
            stop.number = 2

    with pytest.raises(signals.NotBegunError, match="start again by the same command") as stopped:
        training.train(tiny("run"), press, stop=stop)
    assert stopped.value.status == 130
    assert not (tmp_path / "run").exists()
    assert not list(cached.rglob("*.tokens"))


def test_the_bar_shows_one_part_of_the_work_after_another():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    bar = Bar(Terminal())
    report = reporting.watched_reading(bar, signals.Stop())
    shown = []
    for what in ("reading", "tokenising"):
        for done in (0, 5, 10):
            report(what, done, 10)
            shown.append(bar._pass and (bar._pass.desc, bar._pass.n))
    assert shown == [("reading", 0), ("reading", 5), None, ("tokenising", 0), ("tokenising", 5), None]
    bar.close()


def test_characters_of_the_validation_part_alone_are_replaced_counted_and_reported(tiny, tmp_path):
    listener, config = Listener(), tiny("run", "data.unknown=replace")
    text = (tmp_path / "corpus.txt").read_text()
    (tmp_path / "corpus.txt").write_text(text[:-40] + "```" + text[-37:])
    training.train(config, listener, stop_after=1)
    assert "3 characters outside the vocabulary ('`') are replaced by '\ufffd'." in listener.said
    engine = Engine.from_checkpoint(tmp_path / "run")
    assert "`" not in engine.tokenizer.alphabet
    assert engine.score("1 is `").nats_per_token == engine.score("1 is \ufffd").nats_per_token
    assert engine.replaced("1 is `") == "1 character outside the vocabulary ('`') is replaced by '\ufffd'."


def test_one_unknown_character_refuses_a_text_unless_it_is_replaced(finished_run):
    engine = Engine.from_checkpoint(finished_run)
    text = "5 is 0 and 2, `9 is 1 and 1, " * 30
    for use in (engine.score, engine.remember, engine.generate, engine.replaced):
        with pytest.raises(UserError, match=r"'`' is not among .*--unknown replace; in training, data\.unknown=replace"):
            use(text)
    lenient = engine.with_unknown("replace")
    assert lenient.score(text) == engine.score(text.replace("`", " "))
    assert lenient.replaced(text).startswith("30 characters outside the vocabulary ('`') are replaced by ' '")
    assert lenient.generate("1 `", max_tokens=5) == engine.generate("1  ", max_tokens=5)
    assert lenient.remember(text).memory.bank.present == engine.remember(text.replace("`", " ")).memory.bank.present
