"""Damage to a checkpoint is seen, and nothing that one holds leads out of it."""

import hashlib
import os
import random
import shutil
import subprocess

import pytest

from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.storage import checkpoint, manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with a manifest."""
    whole = tmp_path / "whole"
    (whole / "deep").mkdir(parents=True)
    (whole / "a").write_bytes(bytes(range(20)))
    (whole / "deep" / "b").write_text("text\n")
    (whole / "empty").touch()
    manifest.commit(whole)
    return whole


def resign(folder, *lines):
    """The manifest that an attacker would write: right in itself, with lines of his own."""
    path = folder / manifest.NAME
    body = b"".join(path.read_bytes().splitlines(keepends=True)[:-1]) + b"".join(line.encode() for line in lines)
    path.write_bytes(body + f"# {hashlib.sha256(body).hexdigest()} of the lines above\n".encode())


def test_a_whole_folder_has_no_damage_and_sha256sum_agrees(folder):
    assert manifest.damage(folder) is None
    subprocess.run(["sha256sum", "--check", "--quiet", manifest.NAME], cwd=folder, check=True)


def test_a_flipped_bit_of_any_byte_of_any_file_is_seen_the_manifest_included(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for place in range(len(content)):
            for bit in (0, 5, 7):  # 5 turns small letters into capitals
                path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
                assert manifest.damage(folder) == f"{path.relative_to(folder).as_posix()} has changed"
        path.write_bytes(content)
    assert manifest.damage(folder) is None


def test_every_truncation_deletion_and_addition_is_seen(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            assert "has changed" in manifest.damage(folder)
        path.write_bytes(content + b"\0")
        assert "has changed" in manifest.damage(folder)
        path.unlink()
        assert manifest.damage(folder) == f"{path.relative_to(folder).as_posix()} is missing"
        path.write_bytes(content)
    (folder / "deep" / "more").touch()
    assert manifest.damage(folder) == f"deep/more is not in {manifest.NAME}"


@pytest.mark.parametrize("name", ["../secret", "deep/../../secret", "/etc/passwd", "./a", "deep//b", "..\\secret", ""])
def test_a_manifest_that_names_what_lies_outside_is_refused_and_nothing_there_is_read(folder, name, monkeypatch):
    secret = folder.parent / "secret"
    secret.write_text("mine")
    resign(folder, f"{hashlib.sha256(b'mine').hexdigest()}  {name}\n")
    opened = []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, _: opened.append(file.name))
    assert manifest.damage(folder) == f"{manifest.NAME} names {name!r}, which lies outside"
    assert not opened


def test_links_devices_and_pipes_are_refused(folder):
    secret = folder.parent / "secret"
    secret.write_text("text\n")
    (folder / "deep" / "b").unlink()
    (folder / "deep" / "b").symlink_to(secret)
    assert manifest.damage(folder) == "deep/b is a symbolic link"
    (folder / "deep" / "b").unlink()
    os.mkfifo(folder / "deep" / "b")
    assert manifest.damage(folder) == "deep/b is no file"
    shutil.rmtree(folder / "deep")
    (folder.parent / "deep").mkdir()
    (folder.parent / "deep" / "b").write_text("text\n")
    (folder / "deep").symlink_to(folder.parent / "deep")
    assert manifest.damage(folder) == "deep is a symbolic link"
    moved = folder.rename(folder.parent / "moved")
    folder.symlink_to(moved)
    assert manifest.damage(folder) == "it is a symbolic link"


@pytest.mark.parametrize("body", [b"\xff\xfe", b"no sum", b"ab  cd\nx", b"0" * 70 + b"\n", b"  \n"])
def test_a_strange_manifest_is_damage(folder, body):
    (folder / manifest.NAME).write_bytes(body)
    assert manifest.damage(folder) == f"{manifest.NAME} has changed"
    (folder / manifest.NAME).write_bytes(body + f"# {hashlib.sha256(body).hexdigest()} of the lines above\n".encode())
    assert manifest.damage(folder)


def flip(file):
    content = bytearray(file.read_bytes())
    content[random.Random(file.name).randrange(len(content))] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_of_a_checkpoint_is_told_and_the_newest_whole_one_is_used(finished_run, tmp_path, caplog, how):
    """Every file of the best checkpoint in turn; the others stand by."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with checkpoint.open_run(run) as checkpoints:
        best, newest_other = checkpoints.best, [step for step in checkpoints.steps if step != checkpoints.best][-1]
    folder = run / checkpoint.FOLDER / str(best)
    expected = Engine.from_checkpoint(finished_run, newest_other).generate("1", max_tokens=2)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {file.relative_to(folder).parts[0] for file in files} == {"params", "optimizer", "record.json", manifest.NAME}
    for file in files:
        content = file.read_bytes()
        DAMAGE[how](file)
        with checkpoint.open_run(run) as checkpoints:
            step, _, (told,) = checkpoints.first_whole([best, newest_other], checkpoints.metadata)
        assert step == newest_other
        assert str(file.relative_to(folder)) in told
        caplog.clear()
        assert Engine.from_checkpoint(run).generate("1", max_tokens=2) == expected
        (warning,) = caplog.messages
        assert warning.startswith(f"The checkpoint of step {best} is damaged (")
        assert warning.endswith(f"using that of step {newest_other} instead.")
        with pytest.raises(UserError, match=f"step {best} in .* is damaged"):
            Engine.from_checkpoint(run, step=best)
        file.write_bytes(content)
    caplog.clear()
    Engine.from_checkpoint(run)
    assert not caplog.messages


def test_a_run_whose_checkpoints_are_all_damaged_is_told_in_one_sentence(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for path in (run / checkpoint.FOLDER).glob(f"*/{manifest.NAME}"):
        path.unlink()
    with pytest.raises(UserError, match=rf"is damaged .*{manifest.NAME} is missing") as raised:
        Engine.from_checkpoint(run)
    assert "\n" not in str(raised.value)
