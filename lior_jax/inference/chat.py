"""A conversation in the terminal: what was said stays read, so a turn costs its own length only."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lior_jax.data import read_file
from lior_jax.errors import UserError
from lior_jax.inference.decoder import sequence_keys
from lior_jax.inference.engine import PACE, Engine
from lior_jax.inference.explanation import Explanation
from lior_jax.inference.sampling import Settings
from lior_jax.inference.text import Writer

HELP = """/reset             forget the conversation
/temperature T     Boltzmann temperature of what follows; 0 takes the most probable token
/explain           where each token of the last answer was retrieved from
/remember FILE     read a text into the memory, without training
/help              these lines
/quit              leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """Turns of a transcript that the model continues: each line, a line break, and the answer up to a stop string.

    Args:
        settings: how tokens are chosen.
        stop: strings before which an answer ends; they separate the turns.
        max_tokens: of an answer.
        seed: the same seed and the same lines give the same conversation.
        line_end: what stands between a line and its answer.
    """

    def __init__(
        self, engine: Engine, settings: Settings, stop: tuple[str, ...], max_tokens: int, seed: int, line_end: str = "\n"
    ):
        self.engine, self.settings, self.stop, self.max_tokens, self.seed = engine, settings.check(), stop, max_tokens, seed
        self.line_end = line_end
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.transcript, self.answer, self.turns = "", "", 0
        self._prefix = self.engine.decoder.empty(1)

    def reply(self, line: str) -> Iterator[str]:
        """Yield the answer to a line, piece by piece. What was yielded belongs to the conversation, if the rest is given up.

        Raises:
            UserError: an empty line, or one that the tokenizer cannot encode; the conversation is as it was.
        """
        self.engine.encode(line)
        between = self.stop[0] if self.stop else self.line_end
        added = (between if self.transcript else "") + line + self.line_end
        return self._reply(added, self.engine.encode(added))

    def _reply(self, added: str, tokens: Any) -> Iterator[str]:
        decoder, tokenizer = self.engine.decoder, self.engine.tokenizer
        self._prefix = decoder.read(self._prefix, [tokens])
        self.transcript, self.answer, self.turns = self.transcript + added, "", self.turns + 1
        writer = Writer(tokenizer.decode, self.stop)
        keys = sequence_keys(self.seed, [self.turns])
        try:
            for drawn in decoder.stream(self._prefix, keys, self.settings, self.max_tokens, PACE):
                piece = "".join(map(writer.write, drawn[0]))
                self.answer += piece
                yield piece
                if writer.stopped:
                    return
            rest = writer.end()
            self.answer += rest
            yield rest
        finally:
            # Drawing went on in a copy: only what was shown has been said.
            self._prefix = decoder.read(self._prefix, [tokenizer.encode(self.answer)])
            self.transcript += self.answer

    def explain(self) -> Explanation:
        """Where each token of the last answer was retrieved from. Raises `UserError` if there is none."""
        if not self.answer:
            raise UserError("There is no answer to explain yet; say something first.")
        return self.engine.explain(self.transcript.removesuffix(self.answer), self.answer)

    def remember(self, path: str) -> str:
        """Read a file into the engine's memory, and tell what was done. Raises `UserError` for one that cannot be read."""
        text = read_file(path)
        self.engine = self.engine.remember(text)
        return f"{len(text):,} characters of {path} are remembered."


def run(conversation: Conversation, ask: Callable[[str], str] = input, show: Callable[..., Any] = print) -> None:
    """Talk until the end of the input or /quit.

    Args:
        ask: shows a prompt and returns a line, as `input` does.
        show: prints text, as `print` does.
    """
    show("Say something; /help lists the commands.")
    while True:
        try:
            line = ask("> ")
        except EOFError:
            show()
            return
        except KeyboardInterrupt:
            show("\n/quit leaves.")
            continue
        try:
            if line.strip() == "/quit":
                return
            if line.startswith("/"):
                show(_command(conversation, *line[1:].split(maxsplit=1)))
            elif line:
                _answer(conversation, line, show)
        except UserError as problem:
            show(problem)


def _answer(conversation: Conversation, line: str, show: Callable[..., Any]) -> None:
    try:
        with contextlib.closing(conversation.reply(line)) as pieces:
            for piece in pieces:
                show(piece, end="", flush=True)
    except KeyboardInterrupt:
        show(" [stopped]", end="")
    show()


def _command(conversation: Conversation, name: str = "", argument: str = "") -> Any:
    if name == "reset":
        conversation.reset()
        return "Forgotten."
    if name == "temperature":
        try:
            temperature = float(argument)
        except ValueError:
            raise UserError("/temperature needs a number, for example /temperature 0.7.") from None
        conversation.settings = conversation.settings._replace(temperature=temperature).check()
        return f"The temperature is {temperature:g}."
    if name == "explain":
        return conversation.explain().table()
    if name == "remember":
        if not argument:
            raise UserError("/remember needs a file, for example /remember notes.txt.")
        return conversation.remember(argument.strip())
    if name == "help":
        return HELP
    raise UserError(f"There is no command /{name}; /help lists them.")
