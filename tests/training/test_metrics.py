"""TensorBoard shows every figure, in groups whose alphabetical order is that of their importance."""

import struct

from tensorboardX.proto.event_pb2 import Event

from lior_jax.training import metrics


def events(run):
    """All events of a run's board, in their order: each record is a length, its checksum, the event and its checksum."""
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def scalars(run):
    """Values by tag, with the steps."""
    found = {}
    for event in events(run):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_the_loss_is_the_first_group_and_every_figure_has_one(finished_run):
    shown = scalars(finished_run)
    groups = sorted({tag.split("/")[0] for tag in shown})
    assert groups == ["loss", "optimizer", "physics", "soundness", "speed"]
    assert sorted(shown)[0] == "loss/train"
    assert {"loss/validation", "physics/action/1", "soundness/nudge/0", "speed/tokens_per_second"} <= set(shown)
    lines = metrics.read(finished_run)
    trained = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    validated = [(line["step"], line["nats_per_token"]) for line in lines if line["kind"] == "validation"]
    for tag, recorded in (("loss/train", trained), ("loss/validation", validated)):
        assert [step for step, _ in shown[tag]] == [step for step, _ in recorded]
        assert all(abs(x - y) < 1e-6 for (_, x), (_, y) in zip(shown[tag], recorded, strict=True))


def test_another_figure_stands_under_its_kind(tmp_path):
    board = metrics.Metrics(tmp_path)
    board.write("train", 3, {"something": 1.5, "several": [1.0, 2.0]})
    board.close()
    assert scalars(tmp_path) == {
        "train/something": [(3, 1.5)],
        "train/several/0": [(3, 1.0)],
        "train/several/1": [(3, 2.0)],
    }
