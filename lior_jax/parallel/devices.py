"""The devices of a run, and the placement of its arrays on them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lior_jax.errors import UserError
from lior_jax.parallel.shardings import DATA, MODEL, spec_of
from lior_jax.settings import Config


class Devices:
    """A mesh of `data` times `model` devices, or one device without a mesh.

    Args:
        data: number of parts that each batch is split into.
        model: number of parts that heads and potential units are split into.
        shard_parameters: whether parameters and optimiser state are sharded over `data`, too.
        among: available devices, of which the first ones are used; all of JAX's by default.
        processes: number of processes that the devices belong to; of each, equally many are used.
    """

    def __init__(
        self,
        data: int = 1,
        model: int = 1,
        shard_parameters: bool = False,
        among: list[jax.Device] | None = None,
        processes: int = 1,
    ):
        self.data, self.model, self.shard_parameters = data, model, shard_parameters
        self.among = jax.devices() if among is None else among
        self.processes = processes

    @property
    def count(self) -> int:
        """Number of devices in use."""
        return self.data * self.model

    @cached_property
    def mesh(self) -> Mesh | None:
        """None on one device."""
        if self.count == 1:
            return None
        grid = np.array(self._used).reshape(self.data, self.model)
        return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))

    @property
    def _used(self) -> list[jax.Device]:
        if self.processes == 1:
            return self.among[: self.count]
        own = [[device for device in self.among if device.process_index == index] for index in range(self.processes)]
        return [device for some in own for device in some[: self.count // self.processes]]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context manager: set the mesh for code that is traced and run inside (`shardings.kept_sharded`, `pieces.shares`)."""
        if self.mesh is None:
            yield
        else:
            with jax.set_mesh(self.mesh):
                yield

    @property
    def everywhere(self) -> Sharding:
        """Sharding of replicated arrays."""
        return self._sharding(PartitionSpec())

    @property
    def batch(self) -> Sharding:
        """Sharding of arrays `[B, …]` whose sequences are split over the devices."""
        return self._sharding(PartitionSpec(DATA))

    def of_state(self, tree: Any) -> Any:
        """Shardings of parameters, or of trees with the paths of parameters, such as an optimiser's state.

        Args:
            tree: arrays or their shapes.
        """
        shape = {DATA: self.data, MODEL: self.model}
        specs = jax.tree.map_with_path(lambda path, x: spec_of(path, x.shape, shape, self.shard_parameters), tree)
        return jax.tree.map(self._sharding, specs)

    def on_first(self, tree: Any) -> Any:
        """A tree of unsharded arrays on the first device, which runs inference; with several processes, on the first of each,
        and all must call it."""
        if self.processes == 1:
            return tree if self.mesh is None else jax.device_put(tree, self.among[0])
        whole = tree if all(x.is_fully_replicated for x in jax.tree.leaves(tree)) else self._gather(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), whole)

    def put(self, tree: Any, shardings: Any) -> Any:
        """Values that all processes have, such as numbers, placed on the devices."""
        if self.processes == 1:
            return jax.device_put(tree, shardings)

        def placed(x: Any, sharding: Sharding) -> jax.Array:
            if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
                return x
            value = np.asarray(x)
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

        return jax.tree.map(placed, tree, shardings)

    def rows(self, count: int) -> slice:
        """The rows that this process holds of arrays `[count, …]` with the sharding `batch`."""
        if self.processes == 1:
            return slice(0, count)
        indices = self.batch.addressable_devices_indices_map((count,)).values()
        held = [index[0].indices(count) for index in indices if index is not None]
        return slice(min(first for first, _, _ in held), max(last for _, last, _ in held))

    def batch_of(self, rows: Any, count: int) -> Any:
        """Arrays `[count, …]` with the sharding `batch`, of which each process gives its own `rows`."""
        if self.processes == 1:
            return jax.device_put(rows, self.batch)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, x, (count, *x.shape[1:])), rows)

    def largest(self, number: int) -> jax.Array:
        """`[]` int32, the largest of the numbers that the processes give. It is not waited for; all must call it."""
        own = NamedSharding(self._mesh, PartitionSpec((DATA, MODEL)))
        given = jax.make_array_from_callback((self.count,), own, lambda index: np.full(1, number, np.int32))
        return self._largest(given)

    @property
    def _mesh(self) -> Mesh:
        assert self.mesh is not None  # several processes have several devices
        return self.mesh

    @cached_property
    def _largest(self) -> Callable[[jax.Array], jax.Array]:
        return jax.jit(jnp.max, out_shardings=self.everywhere)

    @cached_property
    def _gather(self) -> Callable[[Any], Any]:
        return jax.jit(lambda tree: tree, out_shardings=self.everywhere)

    def _sharding(self, spec: PartitionSpec) -> Sharding:
        return SingleDeviceSharding(self.among[0]) if self.mesh is None else NamedSharding(self.mesh, spec)

    @property
    def sentence(self) -> str | None:
        """Description of the use of several devices; None if only one is available."""
        if len(self.among) == 1:
            return None
        axes = [f"batch split over {self.data}" if self.data > 1 else "", f"heads over {self.model}" if self.model > 1 else ""]
        how = f": {' x '.join(filter(None, axes))}" if self.count > 1 else ""
        cut = ", parameters and optimiser state sharded" if self.shard_parameters and self.data > 1 else ""
        idle = len(self.among) - self.count
        rest = f"; the other {idle} would need a training.batch_size divisible by more devices" if idle else ""
        of = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.count} of {len(self.among)} devices{of}{how}{cut}{rest}."


def chosen(config: Config, among: list[jax.Device] | None = None, processes: int | None = None) -> Devices:
    """The devices that a configuration requests. `parallel.data: auto` takes the largest number that divides the sequences
    processed at a time, `training.batch_size / training.accumulate`, and is divided over the processes.

    Args:
        among: available devices; all of JAX's by default.
        processes: number of processes that they belong to; that of JAX by default.

    Raises:
        UserError: more devices are requested than available, or a number that cannot be divided over the processes.
    """
    among = jax.devices() if among is None else among
    processes = jax.process_count() if processes is None else processes
    there = len(among)
    if processes > 1:  # of each, as many as of the one that has the fewest
        there = processes * min(Counter(device.process_index for device in among).values())
    asked, together = config.parallel, config.training.batch_size // config.training.accumulate
    data = asked.data
    if data == "auto":
        most = max(there // asked.model, 1)
        fitting = [count for count in range(1, most + 1) if together % count == 0 and count * asked.model % processes == 0]
        if not fitting:
            raise UserError(
                f"{together} sequences at a time (training.batch_size / training.accumulate) cannot be divided over {processes}"
                f" processes with {there} devices; give a training.batch_size divisible by {processes}, or fewer processes."
            )
        data = max(fitting)
    if data * asked.model > there:
        counted = "is one" if there == 1 else f"are {there}"
        raise UserError(
            f"parallel: data: {asked.data} and model: {asked.model} ask for {data * asked.model} devices, and there {counted}; "
            "give smaller numbers, or data: auto."
        )
    if data * asked.model % processes:
        raise UserError(
            f"parallel: data: {asked.data} and model: {asked.model} ask for {data * asked.model} devices, which cannot be "
            f"divided over {processes} processes; give a multiple of {processes}, or data: auto."
        )
    return Devices(data, asked.model, asked.shard_parameters, among, processes)
