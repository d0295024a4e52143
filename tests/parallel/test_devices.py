"""Which devices a run takes, and where on them its arrays lie."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lior_jax import config as configuration
from lior_jax import parallel
from lior_jax.errors import UserError
from lior_jax.learning.chunks import _count
from lior_jax.parallel.shardings import spec_of
from lior_jax.training.step import initial_state

EIGHT = ["device"] * 8
"""No more is asked of a device than that it is there."""


def config_of(*overrides: str):
    sizes = ["model.vocab_size=64", "model.width=64", "model.heads=4", "model.flow.units=128", "model.blocks=8"]
    return configuration.parse("{}", "x", [*sizes, "training.batch_size=16", *overrides])


def test_one_device_is_no_mesh():
    devices = parallel.chosen(config_of())
    assert devices.mesh is None
    assert devices.sentence is None
    assert devices.batch == jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.parametrize(
    ("overrides", "there", "data", "said"),
    [
        ((), 8, 8, "8 of 8 devices: batch split over 8."),
        (("parallel.model=2",), 8, 4, "8 of 8 devices: batch split over 4 x heads over 2."),
        (("parallel.model=4",), 6, 1, "4 of 6 devices: heads over 4; the other 2 would need a"),
        (("training.batch_size=6",), 8, 6, "6 of 8 devices: batch split over 6; the other 2 would need a"),
        (("training.batch_size=1",), 8, 1, "1 of 8 devices; the other 7 would need a"),
        (("parallel.data=2", "parallel.shard_parameters=true"), 2, 2, "parameters and optimiser state sharded."),
    ],
)
def test_a_batch_is_shared_by_as_many_as_divide_it(overrides, there, data, said):
    devices = parallel.chosen(config_of(*overrides), EIGHT[:there])
    assert devices.data == data
    assert said in devices.sentence


class Owned(NamedTuple):
    """A device of a process."""

    process_index: int
    number: int


def owned(*counts: int) -> list[Owned]:
    return [Owned(index, number) for index, count in enumerate(counts) for number in range(count)]


@pytest.mark.parametrize(
    ("overrides", "counts", "data", "used"),
    [
        ((), (2, 2), 4, (2, 2)),
        (("training.batch_size=6",), (2, 2), 2, (1, 1)),
        (("training.batch_size=6", "training.accumulate=3"), (2, 2), 2, (1, 1)),
        (("training.batch_size=6",), (4, 3, 5), 6, (2, 2, 2)),
        (("parallel.model=4",), (2, 2), 1, (2, 2)),
        (("parallel.model=2", "training.batch_size=3"), (2, 2, 2), 3, (2, 2, 2)),
        (("parallel.data=2",), (4, 4), 2, (1, 1)),
    ],
)
def test_of_every_process_as_many_devices_are_used(overrides, counts, data, used):
    devices = parallel.chosen(config_of(*overrides), owned(*counts), len(counts))
    assert devices.data == data
    assert devices._used == owned(*used)
    assert f"{sum(used)} of {sum(counts)} devices of {len(counts)} processes" in devices.sentence


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["training.batch_size=3"],
            r"3 sequences at a time .* cannot be divided over 2 processes with 4 devices; give a train",
        ),
        (["training.batch_size=1"], r"1 sequences at a time .* give a training.batch_size divisible by 2, or fewer processes"),
        (["parallel.data=1"], r"ask for 1 devices, which cannot be divided over 2 processes; give a multiple of 2, or data: a"),
        (["parallel.data=8"], r"ask for 8 devices, and there are 4; give smaller"),
    ],
)
def test_what_cannot_be_divided_over_processes_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        parallel.chosen(config_of(*overrides), owned(2, 3), 2)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"parallel: data: 4 and model: 4 ask for 16 devices, and there are 8; give smaller"):
        parallel.chosen(config_of("parallel.data=4", "parallel.model=4"), EIGHT)
    with pytest.raises(UserError, match=r"parallel: data: auto and model: 2 ask for 2 devices, and there is one;"):
        parallel.chosen(config_of("parallel.model=2"), EIGHT[:1])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["parallel.data=3"], "parallel.data: 3 does not divide training.batch_size, 16"),
        (["parallel.data=32"], "parallel.data: 32 does not divide training.batch_size, 16"),
        (["parallel.model=3"], "parallel.model: 3 does not divide model.heads, 4"),
        (["parallel.model=4", "model.flow.units=6"], "parallel.model: 4 does not divide model.flow.units, 6"),
        (["parallel.data=0"], "parallel.data: 0 is neither a number of devices nor auto"),
        (["parallel.data=all"], "parallel.data: 'all' is neither a number of devices nor auto"),
    ],
)
def test_what_does_not_divide_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        config_of(*overrides)


def specs(shard_parameters: bool, *overrides: str):
    config = config_of(
        "model.field.evolution=master", "model.geometry.frame=derived", "model.convolution.long=true", *overrides
    )
    state = jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0))
    mesh = {"data": 4, "model": 2}
    return state, jax.tree.map_with_path(lambda path, x: spec_of(path, x.shape, mesh, shard_parameters), state)


def axes(spec: PartitionSpec) -> tuple:
    return tuple(spec)


def test_heads_and_units_lie_on_model():
    state, found = specs(False)
    blocks = found.params.blocks
    for part in (blocks.query, blocks.output, blocks.metric.stiffness, blocks.inverse_temperature, blocks.field.evidence.pull):
        assert axes(part)[1] == "model"
    assert axes(blocks.long_convolution.kernel.order) == (None, "model")
    assert axes(blocks.long_convolution.gain) == (None, None)
    assert axes(blocks.hamiltonian.potential.features) == (None, "model", None)
    assert axes(blocks.hamiltonian.potential.bias) == (None, "model")
    assert axes(blocks.hamiltonian.inverse_mass) == (None, None)
    assert axes(found.params.carried.frame.axes)[:2] == (None, "model")
    assert not any(axes(found.params.embedding))
    assert "data" not in {axis for spec in jax.tree.leaves(found) for axis in axes(spec)}
    by_head = [x for x in jax.tree.leaves(state.params) if x.shape[:2] == (8, 4)]
    assert len(by_head) > 20
    for x, spec in zip(jax.tree.leaves(state.params), jax.tree.leaves(found.params), strict=True):
        assert ("model" in axes(spec)) == (x.shape[:2] in ((8, 4), (8, 128))), (x.shape, spec)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_arrays_are_cut_along_their_longest_axis_but_for_the_blocks(optimizer):
    state, found = specs(True, f"optimizer.name={optimizer}", "optimizer.average=0.9")
    assert axes(found.params.embedding) == ("data", None)
    assert axes(found.params.blocks.query) == (None, "model", None, "data")
    assert axes(found.params.blocks.hamiltonian.potential.features) == (None, "model", "data")
    assert not any(axes(found.params.blocks.inverse_temperature)[::2])  # too small to be worth it
    assert found.average == found.params
    large = [
        (x, spec)
        for (path, x), spec in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(found), strict=True)
        if x.size >= 2**12 and "carried" not in jax.tree_util.keystr(path)
    ]
    assert "data" not in {axis for spec in jax.tree.leaves(found.params.carried) for axis in axes(spec)}
    assert len(large) > 10
    assert all("data" in axes(spec) and (x.ndim < 3 or axes(spec)[0] is None) for x, spec in large)


def test_pieces_of_one_device_are_consecutive_and_join_again():
    x = jnp.arange(24).reshape(12, 2)
    pieces = parallel.in_pieces(x, 3)
    np.testing.assert_array_equal(pieces[1], x[4:8])
    np.testing.assert_array_equal(parallel.joined(pieces), x)


@pytest.mark.parametrize(("sequences", "chunk", "count"), [(16, 4, 4), (16, 16, 1), (16, 100, 1), (12, 5, 3), (7, 2, 7)])
def test_a_chunk_is_the_most_that_divides_what_a_device_has(sequences, chunk, count):
    assert _count(sequences, chunk) == count
