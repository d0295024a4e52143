"""Conversations: what was said stays read, and no mistake loses it."""

import pytest

from lior_jax.cli import conversation as conversation_loop
from lior_jax.errors import UserError
from lior_jax.inference import Engine, chat
from lior_jax.inference.chat import Conversation
from lior_jax.inference.sampling import Sampling


@pytest.fixture(scope="module")
def engine(finished_run):
    return Engine.from_checkpoint(finished_run)


def converse(engine, temperature=0.0, stop=(", ",), max_tokens=12):
    """The corpus has no line breaks, so neither has its alphabet."""
    return Conversation(engine, Sampling(temperature), stop, max_tokens, seed=0, line_end=" ")


class Terminal:
    """Lines to be typed, an exception among them being raised instead, and what was shown."""

    def __init__(self, *lines):
        self.lines, self.shown = list(lines), ""

    def ask(self, _):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def show(self, text="", end="\n", flush=False):
        self.shown += f"{text}{end}"


@pytest.fixture(scope="module")
def talk(engine):
    return lambda *lines, **how: _talk(engine, *lines, **how)


def _talk(engine, *lines, **how):
    terminal, conversation = Terminal(*lines), converse(engine, **how)
    conversation_loop.run(conversation, terminal.ask, terminal.show)
    return terminal.shown, conversation


def test_an_answer_continues_all_that_was_said(engine):
    conversation = converse(engine)
    first = "".join(conversation.reply("1 is"))
    assert conversation.transcript == "1 is " + first
    second = "".join(conversation.reply("5 is"))
    before = "1 is " + first + ", 5 is "
    assert conversation.transcript == before + second
    assert second == engine.generate(before, max_tokens=12, temperature=0.0, stop=[", "])
    conversation.reset()
    assert "".join(conversation.reply("1 is")) == first


def test_an_answer_given_up_leaves_what_was_shown(engine):
    conversation = converse(engine, stop=(), max_tokens=40)
    pieces = conversation.reply("1 is")
    shown = next(pieces)
    pieces.close()
    assert conversation.transcript == "1 is " + shown
    rest = "".join(conversation.reply("5"))
    before = "1 is " + shown + " 5 "
    assert rest == engine.generate(before, max_tokens=40, temperature=0.0)


def test_a_line_that_cannot_be_read_changes_nothing(engine):
    conversation = converse(engine)
    first = "".join(conversation.reply("1 is"))
    for line, message in (("@", "'@' is not among"), ("", "prompt is empty")):
        with pytest.raises(UserError, match=message):
            conversation.reply(line)
    assert conversation.transcript == "1 is " + first


def test_the_terminal(talk):
    shown, conversation = talk("/temperature 0.5", "1 is", KeyboardInterrupt(), "", "/explain", "/nonsense", "@", "/help")
    assert conversation.settings.temperature == 0.5
    assert "The temperature is 0.5." in shown
    assert conversation.answer in shown
    assert "/quit leaves" in shown
    assert "retrieved from" in shown
    assert "There is no command /nonsense" in shown
    assert "'@' is not among" in shown
    assert chat.HELP in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature", "needs a number"),
        ("/temperature hot", "needs a number"),
        ("/temperature -1", r"temperature is -1.0"),
        ("/explain", "no answer to explain"),
        ("/explain 0", "takes a number of tokens"),
        ("/explain all", "takes a number of tokens"),
        ("/remember", "needs a file"),
        ("/remember nowhere.txt", "nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_told_and_the_talk_goes_on(talk, line, message):
    shown, _ = talk(line, "/reset", "/quit", "not read")
    assert message in shown
    assert "Forgotten." in shown


def test_ctrl_c_stops_the_answer_only(engine):
    terminal, conversation = Terminal("1 is", "5 is"), converse(engine, stop=(), max_tokens=30)
    show, calls = terminal.show, []

    def interrupt_once(text="", **how):
        show(text, **how)
        calls.append(text)
        if len(calls) == 3:  # after the greeting and a first piece
            raise KeyboardInterrupt

    conversation_loop.run(conversation, terminal.ask, interrupt_once)
    assert "[stopped]" in terminal.shown
    assert conversation.transcript.startswith("1 is ")
    assert len(conversation.answer) == 30  # of the second line


def test_an_interrupt_within_a_command_stops_it_and_nothing_more(engine, monkeypatch):
    monkeypatch.setattr(Conversation, "remember", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    terminal = Terminal("/remember notes.txt", "/reset", "/quit", "not read")
    conversation_loop.run(converse(engine), terminal.ask, terminal.show)
    assert "[stopped]" in terminal.shown
    assert "Forgotten." in terminal.shown
    assert terminal.lines == ["not read"]


def test_characters_that_are_replaced_are_reported_and_the_talk_goes_on(engine, talk):
    shown, conversation = _talk(engine.with_unknown("replace"), "1 `is`", "2 is")
    assert "2 characters outside the vocabulary ('`') are replaced by ' '.\n" in shown
    assert conversation.turns == 2
