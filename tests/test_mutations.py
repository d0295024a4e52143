"""Every entry of `tests/mutation.py` still finds the text that it breaks."""

from tests.mutation import MUTATIONS, ROOT


def test_every_mutation_finds_its_text_once():
    sources = {file: (ROOT / "lior_jax" / file).read_text(encoding="utf-8") for file in {one.file for one in MUTATIONS}}
    stale = [(one.file, one.old) for one in MUTATIONS if sources[one.file].count(one.old) != 1]
    assert stale == []
    assert all(one.old != one.new for one in MUTATIONS)
