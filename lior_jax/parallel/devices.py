"""The devices of a run, and the placement of its arrays on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
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
    """

    def __init__(self, data: int = 1, model: int = 1, shard_parameters: bool = False, among: list[jax.Device] | None = None):
        self.data, self.model, self.shard_parameters = data, model, shard_parameters
        self.among = jax.devices() if among is None else among

    @property
    def count(self) -> int:
        """Number of devices in use."""
        return self.data * self.model

    @cached_property
    def mesh(self) -> Mesh | None:
        """None on one device."""
        if self.count == 1:
            return None
        grid = np.array(self.among[: self.count]).reshape(self.data, self.model)
        return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))

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
        """A tree of unsharded arrays on the first device, which runs inference."""
        return tree if self.mesh is None else jax.device_put(tree, self.among[0])

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
        return f"{self.count} of {len(self.among)} devices{how}{cut}{rest}."


def chosen(config: Config, among: list[jax.Device] | None = None) -> Devices:
    """The devices that a configuration requests. `parallel.data: auto` takes the largest number that divides the sequences
    processed at a time, `training.batch_size / training.accumulate`.

    Args:
        among: available devices; all of JAX's by default.

    Raises:
        UserError: more devices are requested than available.
    """
    among = jax.devices() if among is None else among
    asked, together = config.parallel, config.training.batch_size // config.training.accumulate
    data = asked.data
    if data == "auto":
        most = max(len(among) // asked.model, 1)
        data = max(count for count in range(1, most + 1) if together % count == 0)
    if data * asked.model > len(among):
        there = "is one" if len(among) == 1 else f"are {len(among)}"
        raise UserError(
            f"parallel: data: {asked.data} and model: {asked.model} ask for {data * asked.model} devices, and there {there}; "
            "give smaller numbers, or data: auto."
        )
    return Devices(data, asked.model, asked.shard_parameters, among)
