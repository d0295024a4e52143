"""Exported models: bit for bit the same, and one sentence for a folder that is not whole."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from lior_jax.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, FileTokenizer
from lior_jax.errors import UserError
from lior_jax.inference import Engine, export
from lior_jax.storage import arrays
from tests.oracles import TINY, changed, initial

FOREIGN = FileTokenizer(BpeTokenizer.train(["one two three " * 30], 260).to_library().replace("{256}", "{3}"), "a.json")
TOKENIZER = CharTokenizer('ab"é\n→ ')


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "geometry__frame": "rotor",
            "geometry__rotor_layers": 0,
            "geometry__rank": 0,
            "retrieval__lag_prior": False,
            "field__evolution": "off",
        },
        {
            "convolution__long": True,
            "retrieval__adaptive_order": True,
            "retrieval__products": ("tensor", "wedge", "spinor"),
            "geometry__resilience": "constitutive",
        },
        {"geometry__resilience": "curvature", "geometry__base_metric": tuple(map(tuple, np.diag([1.0, 2, 3, 4]).tolist()))},
        {"dynamics": "dissipative"},
    ],
    ids=["default", "empty and left out", "all parts", "curvature", "dissipative"],
)
def test_a_model_comes_back_bit_for_bit(tmp_path, changes):
    config = changed(TINY, **changes)
    params = initial(config)
    folder = tmp_path / "made" / "on the way"
    assert not export.is_export(folder)
    export.export(params, config, TOKENIZER, folder)
    assert export.is_export(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "model.safetensors", "tokenizer.json"]
    loaded, loaded_config, tokenizer = export.load(folder)
    assert loaded_config == config
    assert tokenizer.to_json() == TOKENIZER.to_json()
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_other_programs_read_the_weights(tmp_path):
    params = initial(TINY)
    export.export(params, TINY, TOKENIZER, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(weights["readout"], params.readout)
    np.testing.assert_array_equal(weights["blocks.metric.stiffness"], params.blocks.metric.stiffness)
    np.testing.assert_array_equal(weights["carried.frame.axes"], params.carried.frame.axes)


def test_an_exported_run_says_what_the_run_says(finished_run, tmp_path):
    engine = Engine.from_checkpoint(finished_run)
    export.export(engine.params, engine.config, engine.tokenizer, tmp_path)
    assert Engine(*export.load(tmp_path)).generate("1 is", max_tokens=20) == engine.generate("1 is", max_tokens=20)


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), BpeTokenizer.train(["one two three " * 30], 260), CharTokenizer("a?é", "?"), FOREIGN]
)
def test_every_tokenizer_comes_back_and_the_library_encodes_as_it_does(tmp_path, tokenizer):
    config = TINY.model_copy(update={"vocab_size": tokenizer.vocab_size})
    export.export(initial(config), config, tokenizer, tmp_path)
    loaded = export.load(tmp_path)[2]
    assert type(loaded) is type(tokenizer)
    assert loaded.to_json() | {"path": None} == tokenizer.to_json() | {"path": None}
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "aéa?\n b—one  two\r\n\n\tthree 12'll" if tokenizer.vocab_size > 100 else "aéa?é"
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    assert library.decode(library.encode(text).ids) == tokenizer.decode(tokenizer.encode(text))
    assert library.get_vocab_size() == tokenizer.vocab_size


def test_the_library_refuses_and_replaces_characters_as_we_do():
    strict, lenient = (tokenizers.Tokenizer.from_str(CharTokenizer("a?", x).to_library()) for x in (None, "?"))
    with pytest.raises(Exception, match="UNK"):
        strict.encode("ab")
    assert lenient.encode("ab?").ids == [0, 1, 1]


def test_an_export_with_a_tokenizer_as_it_was_written_before_is_read(exported):
    (exported / "tokenizer.json").write_text(json.dumps(TOKENIZER.to_json()))
    assert export.load(exported)[2].to_json() == TOKENIZER.to_json()


@pytest.fixture
def exported(tmp_path):
    export.export(initial(TINY), TINY, TOKENIZER, tmp_path)
    return tmp_path


def refused(folder, match):
    with pytest.raises(UserError, match=match) as raised:
        export.load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json"])
def test_a_missing_file_is_told(exported, name):
    (exported / name).unlink()
    refused(exported, f"holds no {name}")


def test_damaged_weights_are_told(exported):
    path = exported / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:100],
        b"",
        b"PK" + whole,
        whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:],
    ):
        path.write_bytes(damaged)
        refused(exported, "is damaged")


def test_a_damaged_tokenizer_or_configuration_is_told(exported):
    (exported / "tokenizer.json").write_text('{"kind": "char"', encoding="utf-8")
    refused(exported, "tokenizer.json is damaged")
    (exported / "tokenizer.json").write_text('{"kind": "char"}', encoding="utf-8")
    refused(exported, "The tokenizer saved with this run is damaged")
    (exported / "config.yaml").write_text("model: {widht: 3}", encoding="utf-8")
    refused(exported, "unknown key model.widht; did you mean width")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 16}, "as float32 .*, but its configuration needs float32"),
        ({"field__evolution": "off"}, "has an array that its configuration does not know, blocks.field"),
        ({"convolution__long": True}, "has no array blocks.long_convolution"),
        ({"vocab_size": 8}, "has a vocabulary of 8, but its tokenizer has 7"),
    ],
)
def test_weights_of_another_configuration_are_told(exported, changes, match):
    export.export(initial(TINY), changed(TINY, **changes), TOKENIZER, exported)
    refused(exported, match)


def test_weights_of_another_type_are_told(exported):
    weights = load_file(exported / "model.safetensors")
    arrays.write(exported / "model.safetensors", weights | {"readout": weights["readout"].astype(np.float64)})
    refused(exported, "has readout as float64")


def test_weights_without_their_digest_are_told(exported):
    save_file(load_file(exported / "model.safetensors"), exported / "model.safetensors")
    refused(exported, "are not those that were saved")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written to"):
        export.export(initial(TINY), TINY, TOKENIZER, tmp_path / "file")


@pytest.mark.parametrize("name", [export.WEIGHTS, export.CONFIG, export.TOKENIZER])
def test_no_file_is_overwritten_that_no_export_wrote(tmp_path, name):
    (tmp_path / name).write_text("model: {width: 8}\n")
    with pytest.raises(UserError, match=f"{tmp_path} holds {name} that no export wrote; choose another"):
        export.export(initial(TINY), TINY, TOKENIZER, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "model: {width: 8}\n"


def test_no_run_is_exported_into_even_if_its_record_is_lost(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    engine = Engine.from_checkpoint(run)
    for lost in ([], ["config.yaml"]):
        for name in lost:
            (run / name).unlink()
        before = sorted(run.iterdir())
        with pytest.raises(UserError, match="run holds a run, whose configuration"):
            engine.export(run)
        assert sorted(run.iterdir()) == before
    assert not export.is_export(run)


def test_an_earlier_export_is_replaced_and_its_neighbours_are_not_touched(exported):
    (exported / "README").write_text("mine")
    (exported / export.WEIGHTS).unlink()  # as a full disk leaves it
    params = initial(TINY, 1)
    export.export(params, TINY, TOKENIZER, exported)
    np.testing.assert_array_equal(export.load(exported)[0].readout, params.readout)
    assert (exported / "README").read_text() == "mine"


def test_the_digest_tells_names_types_shapes_and_values_apart():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((0, 3), np.float32)}
    others = (
        {"a": base["a"], "c": base["b"]},
        base | {"a": base["a"].astype(np.float64)},
        base | {"a": base["a"].reshape(2, 3)},
        base | {"a": base["a"] + np.float32(1e-7)},
        base | {"b": np.zeros((3, 0), np.float32)},
    )
    digests = {arrays.digest(x) for x in (base, *others)}
    assert len(digests) == 6
    assert arrays.digest(dict(reversed(base.items()))) == arrays.digest(base)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    mask = os.umask(0o022)
    try:
        arrays.write(tmp_path / "model.safetensors", {"a": np.zeros(2)})
    finally:
        os.umask(mask)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
