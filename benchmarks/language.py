r"""Loss against tokens and time on the same text: echo, exact back-propagation, a transformer and an n-gram.

    python benchmarks/language.py --set data.path=tinyshakespeare.txt --seeds 3 --out docs/language
    python benchmarks/language.py --plot docs/language.json         table and figure of a stored measurement
    python benchmarks/language.py --set optimizer.name=muon --set optimizer.learning_rate=1e-2 --rate 1e-2 \
        --set optimizer.adam_learning_rate=6e-3 --set optimizer.weight_decay=0.2    the same with Muon for all rows

Echo and back-propagation train one model: same initial parameters, batches and optimiser. Back-propagation uses the faster form
of automatic differentiation, plain or with rematerialised blocks; both are timed first. The transformer (`transformer.py`) has
as many parameters and the same batches. The Kneser-Ney 6-gram (`kneser_ney.py`) reads the training part once. Rows
`equilibrium` and `unrolled relaxation` train the dissipative network, only if named.

Loss is that of the whole validation part, each token but the first scored once, in windows of the context that do not overlap
(the n-gram always sees its five characters). Steps alternate between the rows, so that a drift of the machine's speed affects
all equally; seconds are the sum of a row's own steps, without compilation and evaluation.

Tuned on tiny-shakespeare, 300 steps, one seed, nats/char. Transformer of 3 layers at a learning rate of 5e-3 / 8e-3 / 1.2e-2:
1.913 / 1.907 / 1.918; of 4 layers at 8e-3: 1.913; its embedding initialised at 0.02 instead of 1: 1.982, and all its matrices
at 0.02, too: 2.021. Echo at 4e-3 / 6e-3 / 8e-3 / 1.2e-2: 1.895 / 1.880 / 1.856 / 1.845; the table uses 8e-3 for both. Learned
positions, tied readouts and other weight decays were not tried.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kneser_ney
import numpy as np
import optax
import transformer
from language_report import figure, table

from lior_jax import config as configuration
from lior_jax import data, model
from lior_jax.data.corpus import Corpus
from lior_jax.errors import UserError
from lior_jax.inference import scoring
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import block, dropout, network, operators
from lior_jax.settings import Config
from lior_jax.training import loop
from lior_jax.training.step import State, initial_state, step_key

MODEL = """
data: {tokenizer: char}
model: {context: 128, width: 128, blocks: 3, flow: {units: 256}}
learning: {chunk: 4}
optimizer: {learning_rate: 8e-3, warmup_steps: 60}
training: {steps: 1000, batch_size: 16}
"""
ROWS = ("echo", "back-propagation", "transformer", "kneser-ney", "equilibrium", "unrolled relaxation")
ORDER, POINTS = 6, 8
"""Order of the n-gram; points of a curve."""


class Row(NamedTuple):
    """One that learns by steps."""

    start: Callable[[int], Any]
    """State of a seed."""
    step: Callable[[Any, Any], Any]
    """Next state, from state and batch."""
    losses: Callable[[Any, Any, Any], jax.Array]
    """Nats `[B, L]`, from state, tokens and targets."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS[:4], help="by default the first four")
    parser.add_argument("--seeds", type=int, default=1, help="(1)")
    parser.add_argument("--target", type=float, default=1.88, help="loss to which time and tokens are reported (1.88)")
    parser.add_argument("--layers", type=int, default=3, help="of the transformer (3)")
    parser.add_argument("--rate", type=float, default=8e-3, help="peak learning rate of the transformer (8e-3)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all rows")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json after each seed, and NAME.png")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing; show the measurements in this JSON file")
    given = parser.parse_args(arguments)
    if given.plot:
        results = json.loads(given.plot.read_text(encoding="utf-8"))
        print(table(results, given.target))
        figure(results).savefig(given.plot.with_suffix(".png"))
        return

    try:
        config = configuration.parse(MODEL, "the benchmark", given.set)
        corpus = data.load(config)
    except UserError as mistake:
        parser.error(str(mistake))
    config = data.with_vocabulary(config, corpus)
    results = _header(config)
    if "kneser-ney" in given.rows:
        results["rows"]["kneser-ney"] = _count(corpus)
    rows = {}
    for name in given.rows:
        if name != "kneser-ney":
            rows[name], parameters = _row(name, config, given.layers, given.rate)
            results["rows"][name] = {"parameters": parameters, "seeds": []}
    for seed in range(given.seeds):
        for name, run in _train(rows, config, corpus, seed).items():
            results["rows"][name]["seeds"].append(run)
            print(f"seed {seed}  {name:20} {run['nats'][-1]:.4f} nats/char", flush=True)
        if given.out:
            given.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(results, given.target))
    if given.out and rows:
        figure(results).savefig(given.out.with_suffix(".png"))


def _header(config: Config) -> dict[str, Any]:
    training, context = config.training, config.model.context
    marks = sorted({max(1, round(training.steps * (i + 1) / POINTS)) for i in range(POINTS)})
    tokens = training.batch_size * context
    return {"device": jax.devices()[0].device_kind, "tokens_a_step": tokens, "steps": marks, "rows": {}}


def _count(corpus: Corpus) -> dict[str, Any]:
    vocab_size = corpus.tokenizer.vocab_size
    begin = time.perf_counter()
    orders = kneser_ney.fit(corpus.train, ORDER, vocab_size)
    seconds = time.perf_counter() - begin
    nats = kneser_ney.nats(orders, corpus.validation, vocab_size).mean() / corpus.characters_per_token
    counts = sum(len(order.grams) for order in orders)
    return {"parameters": counts, "seeds": [{"nats": [float(nats)], "fit_seconds": seconds}]}


def _row(name: str, config: Config, layers: int, rate: float) -> tuple[Row, int]:
    """A row, and how many parameters it has."""
    relaxes = name in ("equilibrium", "unrolled relaxation")
    ours = configuration.replace(config, "learning", rule="equilibrium" if relaxes else "echo")
    parameters = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), ours.model)))
    if name == "transformer":
        return _transformer_row(transformer.of_size(parameters, config.model.vocab_size, layers), config, rate)
    step = {
        "echo": lambda state, batch: loop.train_step(state, batch, ours)[0],
        "equilibrium": lambda state, batch: loop.train_step(state, batch, ours)[0],
        "unrolled relaxation": lambda state, batch: by_autodiff(state, batch, ours, False),
    }
    start = jax.jit(initial_state, static_argnums=1)
    row = Row(
        lambda seed: start(jax.random.key(seed), ours),
        step.get(name, lambda state, batch: by_autodiff(state, batch, ours, False)),
        jax.jit(lambda state, tokens, targets: model.token_losses(state.params, tokens, targets, ours.model)),
    )
    return (_faster_form(row, ours) if name == "back-propagation" else row), parameters


def _faster_form(row: Row, config: Config, repeat: int = 5) -> Row:
    batch = (np.zeros((config.training.batch_size, config.model.context), np.int32),) * 2
    forms = {"plain": row}
    forms["rematerialised"] = row._replace(step=lambda state, batch: by_autodiff(state, batch, config, True))
    states, seconds = {name: row.start(0) for name in forms}, {name: [] for name in forms}
    for _ in range(repeat + 1):
        for name, form in forms.items():
            begin = time.perf_counter()
            states[name] = jax.block_until_ready(form.step(states[name], batch))
            seconds[name].append(time.perf_counter() - begin)
    ms = {name: 1e3 * float(np.median(values[1:])) for name, values in seconds.items()}  # the first one compiles
    print("back-propagation, ms a step: " + ", ".join(f"{name} {value:.0f}" for name, value in ms.items()), flush=True)
    return forms[min(ms, key=ms.get)]


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def by_autodiff(state: State, batch: tuple[jax.Array, jax.Array], config: Config, remat: bool) -> State:
    """`loop.train_step` with the gradient of automatic differentiation; `remat` keeps nothing inside a block."""
    tokens, targets = batch
    params = state.params
    masks = _masks(state, tokens, config)
    config = configuration.replace(config, "model.retrieval", kernel="plain")  # no fused kernel can be differentiated

    def loss(learned):
        whole = learned._replace(carried=params.carried)  # what is carried is not differentiated
        s = network.embed(whole.embedding, tokens, masks.embedding)
        apply = jax.checkpoint(block.apply, static_argnums=3) if remat else block.apply
        prepared = operators.prepare(whole, tokens.shape[1], config.model)
        first = s, jnp.zeros_like(s)
        (s, _), observed = jax.lax.scan(lambda x, o: apply(o[0], *x, config.model, o[1]), first, (prepared, masks.blocks))
        logits = network.readout(whole.readout, s, config.model.precision)
        return jnp.mean(network.cross_entropy(logits, targets)), observed

    gradient, observed = jax.grad(loss, has_aux=True)(params)
    carried = operators.carry(params, observed.action, observed.moment, config.model)
    stepped = state.apply_gradients(grads=gradient)
    return stepped.replace(params=stepped.params._replace(carried=carried))


def _transformer_row(net: transformer.Transformer, config: Config, rate: float) -> tuple[Row, int]:
    settings = config.optimizer
    schedule = make_schedule(settings.model_copy(update={"learning_rate": rate}), config.training.steps)
    directions = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
    if settings.name == "muon":
        directions = transformer.muon(directions, (settings.adam_learning_rate or rate) / rate, settings.momentum)
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        directions,
        optax.add_decayed_weights(settings.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(schedule),
    )
    example = jnp.zeros((1, config.model.context), jnp.int32)

    @jax.jit
    def start(seed):
        params = net.init(jax.random.key(seed), example)
        return params, optimizer.init(params)

    @jax.jit
    def losses(state, tokens, targets):
        return network.cross_entropy(net.apply(state[0], tokens), targets)

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        gradient = jax.grad(lambda params: jnp.mean(network.cross_entropy(net.apply(params, batch[0]), batch[1])))(state[0])
        updates, moments = optimizer.update(gradient, state[1], state[0])
        return optax.apply_updates(state[0], updates), moments

    return Row(start, step, losses), sum(x.size for x in jax.tree.leaves(jax.eval_shape(start, 0)[0]))


def _train(rows: dict[str, Row], config: Config, corpus: Corpus, seed: int) -> dict[str, dict[str, Any]]:
    """Of every row: nats per character and seconds of training at each mark, and the median seconds of a step."""
    marks = _header(config)["steps"]
    windows = scoring.cover(corpus.validation, config.model.context)

    def batch_at(step):
        return data.batch_at(corpus.train, seed, step, config.training.batch_size, config.model.context)

    for row in rows.values():
        jax.block_until_ready(row.step(row.start(seed), batch_at(0)))  # compiles
    states = {name: row.start(seed) for name, row in rows.items()}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    runs: dict[str, dict[str, Any]] = {name: {"nats": [], "seconds": []} for name in rows}
    for step in range(marks[-1] if rows else 0):
        batch = jax.block_until_ready(jax.device_put(batch_at(step)))
        for name, row in rows.items():
            begin = time.perf_counter()
            states[name] = jax.block_until_ready(row.step(states[name], batch))
            seconds[name].append(time.perf_counter() - begin)
            if step + 1 in marks:
                nats = _validate(partial(row.losses, states[name]), windows) / corpus.characters_per_token
                runs[name]["nats"].append(nats)
                runs[name]["seconds"].append(sum(seconds[name]))
    return {name: run | {"step_seconds": float(np.median(seconds[name]))} for name, run in runs.items()}


def _validate(losses: Callable[..., jax.Array], windows: scoring.Windows, size: int = 16) -> float:
    """Mean nats of the counted targets."""
    total = 0.0
    for first in range(0, len(windows), size):
        piece = windows[first : first + size]
        arrays = piece.tokens, piece.targets, piece.counted
        tokens, targets, counted = (np.pad(x, ((0, size - len(x)), (0, 0))) for x in arrays)
        total += float((np.asarray(losses(tokens, targets)) * counted).sum(dtype=np.float64))
    return total / int(windows.counts.sum())


def _masks(state: State, tokens: jax.Array, config: Config) -> dropout.Masks:
    """All masks that `loop.train_step` would draw in this step."""
    rate, model = config.learning.dropout, config.model
    if not rate:
        return dropout.KEEP_ALL
    key = step_key(state.step, config)
    keys, length = dropout.keys(rate, key, model.blocks, tokens.shape[0]), tokens.shape[1]
    blocks = jax.vmap(lambda own: dropout.block_masks(own, length, rate, model))(keys.blocks)
    return dropout.Masks(dropout.embedding_mask(keys.embedding, length, rate, model), blocks)


if __name__ == "__main__":
    main()
