"""The geometric memory: its speed compared with faiss, and its worth in nats per character.

    python benchmarks/memory.py                                             speed, 10⁵ and 10⁶ entries x 64 dimensions
    python benchmarks/memory.py --checkpoint RUN --text FILE --split 0.9    nats per character without and with a memory

Speed: faiss (`pip install -e '.[bench]'`) finds the 32 nearest entries by its exact IndexFlatL2. `nearest` finds the
same 32, and `read` is the memory's next-token distribution, the Boltzmann mean over all entries. All have two threads; times
are medians of alternating runs, so that a drift of the machine's speed affects all equally.

Worth: the memory reads the first part of the text. Its weight and temperature are chosen on windows of the first tenth of the
rest, and the score is that of windows of the other nine tenths. Windows are evenly spaced.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

THREADS, NEAREST, DIMENSIONS, VOCABULARY = 2, 32, 64, 65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="RUN", help="folder that train.py wrote; without it, speed is measured")
    parser.add_argument("--text", metavar="FILE", type=Path, help="UTF-8 text")
    parser.add_argument("--split", type=float, default=0.5, help="share of the text that the memory reads (0.5)")
    parser.add_argument("--capacity", type=int, default=2**20, help="entries (1048576)")
    parser.add_argument("--windows", type=int, help="windows to score; by default all")
    parser.add_argument("--repeat", type=int, default=9, help="timings of each (9)")
    arguments = parser.parse_args()
    if bool(arguments.checkpoint) != bool(arguments.text):
        parser.error("--checkpoint and --text go together")
    # Before JAX starts, which makes as many threads as it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if arguments.checkpoint:
        _worth(arguments)
    else:
        _speed(arguments.repeat)


def _speed(repeat: int) -> None:
    import faiss
    import jax
    import numpy as np

    from lior_jax.inference import memory_bank
    from lior_jax.inference.memory_bank import MemoryBank
    from lior_jax.physics.bank import arrange, nearest

    faiss.omp_set_num_threads(THREADS)
    find = jax.jit(partial(nearest, count=NEAREST))
    read = jax.jit(partial(memory_bank.read, vocab_size=VOCABULARY))
    print("| entries | queries | faiss, 32 nearest, ms | 32 nearest, ms | ratio | all entries, ms | ratio | agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for entries in (10**5, 10**6):
        rng = np.random.default_rng(0)
        points = rng.standard_normal((entries, DIMENSIONS), dtype=np.float32)
        tokens = rng.integers(0, VOCABULARY, entries).astype(np.int32)
        index = faiss.IndexFlatL2(DIMENSIONS)
        index.add(points)
        bank = MemoryBank(arrange(jax.numpy.asarray(points)), jax.device_put(tokens), jax.numpy.int32(entries))
        for count in (64, 1):
            queries = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
            on_device = jax.device_put(queries)
            programs = {
                "faiss": partial(index.search, queries, NEAREST),
                "nearest": lambda queries=on_device, bank=bank: jax.block_until_ready(
                    find(queries, bank.points, present=bank.present)
                ),
                "all": lambda queries=on_device, bank=bank: jax.block_until_ready(read(bank, queries, 3.0)),
            }
            same = np.mean(programs["faiss"]()[1] == np.asarray(programs["nearest"]()[0]))
            seconds: dict[str, list[float]] = {name: [] for name in programs}
            for _ in range(repeat + 1):
                for name, program in programs.items():
                    begin = time.perf_counter()
                    program()
                    seconds[name].append(time.perf_counter() - begin)
            ms = {name: 1e3 * float(np.median(values[1:])) for name, values in seconds.items()}
            print(
                f"| {entries:,} | {count} | {ms['faiss']:.1f} | {ms['nearest']:.1f} | {ms['nearest'] / ms['faiss']:.2f} "
                f"| {ms['all']:.1f} | {ms['all'] / ms['faiss']:.2f} | {same:.4f} |",
                flush=True,
            )
    print("\nRatios are to faiss. Agreement: places among the 32 at which both name the same entry.")


def _worth(arguments: argparse.Namespace) -> None:
    import jax

    from lior_jax.inference import Engine, memory_bank, remembering, scoring

    engine = Engine.from_checkpoint(arguments.checkpoint)
    text = arguments.text.read_text(encoding="utf-8")
    cut = len(text) - round(len(text) * (1 - arguments.split))
    middle = cut + (len(text) - cut) // 10
    first, held_out, scored = (engine.tokenizer.encode(part) for part in (text[:cut], text[cut:middle], text[middle:]))
    context = engine.config.context

    begin = time.perf_counter()
    bank = remembering.remember(memory_bank.empty(arguments.capacity, engine.config), engine.params, first, engine.config)
    seconds = time.perf_counter() - begin
    jax.block_until_ready(bank)
    print(
        f"{len(first):,} tokens read in {seconds:.0f} s; {int(bank.present):,} entries x {bank.coordinates.shape[1]} dimensions"
    )

    windows = scoring.cover(held_out, context, context // 2, count=max(1, 2048 // (context // 2)))
    begin = time.perf_counter()
    mixture, chosen = remembering.choose(bank, engine.params, windows, engine.config)
    print(
        f"chosen on {windows.counts.sum():,} held-out targets in {time.perf_counter() - begin:.0f} s: "
        f"λ = {mixture.weight:.3f}, β = {mixture.inverse_temperature:.3f} ({chosen.model:.4f} → {chosen.mixed:.4f} nats)"
    )
    windows = scoring.cover(scored, context, context // 2, count=arguments.windows)
    begin = time.perf_counter()
    score, _ = remembering.score(bank, engine.params, windows, engine.config, mixture)
    seconds = time.perf_counter() - begin
    per_character = len(scored) / len(text[middle:])
    model, mixed = (nats * per_character for nats in score)
    print(f"scored {windows.counts.sum():,} of {len(scored) - 1:,} targets in {seconds:.0f} s, nats per character:\n")
    print("| model alone | with its memory | difference | ratio |")
    print("|---|---|---|---|")
    print(f"| {model:.4f} | {mixed:.4f} | {mixed - model:+.4f} | {mixed / model:.4f} |")


if __name__ == "__main__":
    main()
