"""The command line: values that begin with a dash, paths, and files that are not overwritten."""

import pytest
from matplotlib.figure import Figure

from lior_jax.cli import arguments, overwriting
from lior_jax.errors import UserError


def parse(*words):
    parser = arguments.Parser(prog="it")
    parser.add_argument("--prompt")
    parser.add_argument("--stop", action="append")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--file", type=arguments.path)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--explain", nargs="?", const="here")
    return parser.read(words)


@pytest.mark.parametrize("value", ["-x", "---", "-", "-1", "- item", "--what=ever", "-p --chat", "", "a", "--no\nsuch"])
def test_a_value_may_begin_with_a_dash(value):
    assert parse("--prompt", value, "--chat").prompt == value
    assert parse("--stop", value, "--stop", value).stop == [value, value]
    assert parse(f"--prompt={value}").prompt == value


def test_options_stay_options():
    given = parse("--seed", "-3", "--explain", "--chat", "--prompt", "x")
    assert (given.seed, given.explain, given.chat, given.prompt) == (-3, "here", True, "x")
    assert parse("--prompt=--chat").prompt == "--chat"


def test_the_name_of_an_option_is_no_value_by_mistake(capsys):
    for words in (["--prompt", "--chat"], ["--prompt", "--seed=3"], ["--prompt", "--"], ["--prompt"]):
        with pytest.raises(SystemExit):
            parse(*words)
        assert "expected one argument; write a value that is the name of an option as --option=value" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--chat", "-x")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--file=~/x").file == "/home/me/x"


def test_a_picture_takes_the_place_of_an_earlier_one_only(tmp_path):
    picture = tmp_path / "map.png"
    overwriting.check_picture(picture)
    Figure().savefig(picture, **overwriting.PICTURE)
    overwriting.check_picture(picture)
    for name, draw in {
        "other.png": lambda path: Figure().savefig(path),
        "letter.txt": lambda path: path.write_text("mine"),
    }.items():
        draw(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} exists already"):
            overwriting.check_picture(tmp_path / name)
    with pytest.raises(UserError, match="cannot be written"):
        overwriting.check_picture(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"
