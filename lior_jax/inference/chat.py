"""A conversation with a model. The history is kept in the recurrent state, so the cost of a turn depends on its own length
only."""

from collections.abc import Generator
from typing import Any

from lior_jax.data import read_file
from lior_jax.errors import UserError
from lior_jax.inference.decoder import sequence_keys
from lior_jax.inference.engine import PACE, Engine
from lior_jax.inference.explanation import SHOWN, Explanation
from lior_jax.inference.sampling import Sampling
from lior_jax.inference.text import Writer

HELP = """/reset             forget the conversation
/temperature T     Boltzmann temperature of what follows; 0 takes the most probable token
/explain N         where the first N tokens (40) of the last answer were retrieved from
/remember FILE     read a text into the memory, without training
/help              these lines
/quit              leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """A transcript in turns that the model continues: each line, a line break, and the answer up to a stop string.

    Args:
        settings: of sampling.
        stop: strings before which an answer ends; they separate the turns.
        max_tokens: of an answer.
        seed: the same seed and the same lines give the same conversation.
        line_end: text between a line and its answer.
    """

    def __init__(
        self, engine: Engine, settings: Sampling, stop: tuple[str, ...], max_tokens: int, seed: int, line_end: str = "\n"
    ):
        self.engine, self.settings, self.stop, self.max_tokens, self.seed = engine, settings.check(), stop, max_tokens, seed
        self.line_end = line_end
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.transcript, self.answer, self.turns = "", "", 0
        self._prefix = self.engine.decoder.empty(1)

    def reply(self, line: str) -> Generator[str]:
        """Yield the answer to a line, piece by piece. If the caller stops early, the yielded part is kept in the conversation.

        Raises:
            UserError: an empty line, or one that the tokenizer cannot encode; the conversation is unchanged.
        """
        self.engine.encode(line)
        between = self.stop[0] if self.stop else self.line_end
        added = (between if self.transcript else "") + line + self.line_end
        return self._reply(added, self.engine.encode(added))

    def _reply(self, added: str, tokens: Any) -> Generator[str]:
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
            # Sampling ran ahead in a copy: only what was shown is part of the conversation.
            self._prefix = decoder.read(self._prefix, [tokenizer.encode(self.answer)])
            self.transcript += self.answer

    def explain(self) -> Explanation:
        """The sources of each token of the last answer. Raises `UserError` if there is none."""
        if not self.answer:
            raise UserError("There is no answer to explain yet; say something first.")
        return self.engine.explain(self.transcript.removesuffix(self.answer), self.answer)

    def remember(self, path: str) -> str:
        """Read a file into the engine's memory; returns a report. Raises `UserError` if the file cannot be read."""
        if not path:
            raise UserError("/remember needs a file, for example /remember notes.txt.")
        text = read_file(path)
        self.engine = self.engine.remember(text)
        return "\n".join(filter(None, [self.engine.replaced(text), f"{len(text):,} characters of {path} are remembered."]))

    def command(self, line: str) -> str:
        """Run a command line, given without its `/` (`HELP`), and return the text to show.

        Raises:
            UserError: an unknown command, or a missing argument.
        """
        name, _, argument = line.partition(" ")
        if name == "reset":
            self.reset()
            return "Forgotten."
        if name == "temperature":
            return self._set_temperature(argument)
        if name == "explain":
            return self._explain(argument)
        if name == "remember":
            return self.remember(argument.strip())
        if name == "help":
            return HELP
        raise UserError(f"There is no command /{name}; /help lists them.")

    def _explain(self, count: str) -> str:
        if count and not (count.isascii() and count.isdigit() and int(count)):
            raise UserError("/explain takes a number of tokens, for example /explain 10.")
        return self.explain().table(int(count or SHOWN))

    def _set_temperature(self, value: str) -> str:
        try:
            temperature = float(value)
        except ValueError:
            raise UserError("/temperature needs a number, for example /temperature 0.7.") from None
        self.settings = self.settings._replace(temperature=temperature).check()
        return f"The temperature is {temperature:g}."
