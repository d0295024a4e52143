"""Registries of components that a configuration chooses by name: potentials, integrators, score terms, optimisers, learning
rules, trackers, and readers of text by file extension. Users can add entries.

Built-in entries are imported on first use, so that reading a configuration does not need JAX.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

from pydantic_core import core_schema

from lior_jax.errors import UserError

T = TypeVar("T")


def resolve(reference: Any) -> Any:
    """The object named by `"module:attribute"`, imported now; other values are returned unchanged."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Mapping[str, T], Generic[T]):
    """A registry of values by name. A setting that names one is annotated with it: `rule: Annotated[str, RULES]`.

    Args:
        kind: name of the kind of entries, for messages.
        entries: values, or `"module:attribute"` of values to import on first use.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str]):
        self.kind, self._entries = kind, dict(entries)

    def register(self, name: str, value: T) -> None:
        """Add an entry, which configurations can then name.

        Raises:
            ValueError: the name is taken by another value.
        """
        if self._entries.get(name, value) is not value:
            raise ValueError(f"There is a {self.kind} {name!r} already; choose another name.")
        self._entries[name] = value

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UserError(f"{name!r} is not a known {self.kind}; choose one of {', '.join(self._entries)}.")
        return resolve(self._entries[name])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Settings annotated with the registry accept a name in it, or a tuple of names, including later registrations."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, chosen: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (chosen,) if isinstance(chosen, str) else chosen:
            if name not in self._entries:
                raise ValueError(f"{name!r} is not a known {self.kind}; choose one of {', '.join(self._entries)}")
        return chosen


Dynamics = Literal["symplectic", "dissipative"]
"""The dynamics after a block's kick: a Hamiltonian flow, or relaxation to a minimum of the block's energy."""


@dataclass(frozen=True)
class Rule:
    """A learning rule and its properties."""

    name: str
    """Name by which `learning.rule` chooses it."""
    title: str
    """Name in reports, plots and messages."""
    dynamics: Dynamics
    """Dynamics of the models that it trains."""
    residual_limit: float
    """Largest `Info.reversibility` at which its estimate is applied, unless `learning.residual_limit` is set."""
    estimate: Callable[..., Any] | str
    """`estimate(params, batch, model, learning, key) -> (gradient, Info)`, or where to import it from."""
    residual: str = "residual"
    """What `Info.reversibility` measures, as an axis label."""
    nudges: tuple[str, ...] = ("centred", "one_sided")
    """Supported values of `learning.nudge`."""
    ignores: tuple[str, ...] = ("nudged_steps", "pull", "update")
    """Keys of `learning` that do not apply to it and are refused."""


POTENTIALS: Registry[Any] = Registry(
    "potential",
    {
        "gated": "lior_jax.physics.potential.gated:GATED",
        "hopfield": "lior_jax.physics.potential.hopfield:HOPFIELD",
    },
)
"""Records `physics.potential.Potential`, by `model.flow.potential`."""

INTEGRATORS: Registry[tuple[float, ...]] = Registry(
    "integrator",
    {
        "verlet": "lior_jax.physics.integrators:VELOCITY_VERLET",
        "yoshida4": "lior_jax.physics.integrators:YOSHIDA4",
    },
)
"""Palindromic coefficients (`physics.integrators`), by `model.flow.integrator`."""

SCORE_TERMS: Registry[Any] = Registry(
    "score term",
    {
        "lag_prior": "lior_jax.model.terms:LAG_PRIOR",
        "tensor": "lior_jax.model.terms:TENSOR",
        "wedge": "lior_jax.model.terms:WEDGE",
        "spinor": "lior_jax.model.terms:SPINOR",
    },
)
"""Records `model.terms.Recipe`, by `model.retrieval.products`."""

OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    {
        "adamw": "lior_jax.learning.optimizer:adamw",
        "muon": "lior_jax.learning.optimizer:muon",
    },
)
"""Functions of the optimiser's settings to an optax transformation (`learning.optimizer`), by `optimizer.name`."""

TRACKERS: Registry[Callable[..., Any]] = Registry(
    "tracker",
    {
        "wandb": "lior_jax.training.tracking:wandb",
        "mlflow": "lior_jax.training.tracking:mlflow",
        "aim": "lior_jax.training.tracking:aim",
    },
)
"""Functions of a configuration and a run's folder that return a subscriber, by `training.track`."""

READERS: Registry[Any] = Registry(
    "text reader",
    {
        ".jsonl": "lior_jax.data.readers:json_lines",
        ".parquet": "lior_jax.data.readers:parquet",
    },
)
"""Functions of a path and `data.field` to the pieces of a file's text (`data.readers`), by file extension."""

RULES: Registry[Rule] = Registry(
    "learning rule",
    {
        "echo": Rule(
            name="echo",
            title="Hamiltonian echo",
            dynamics="symplectic",
            residual_limit=1e-2,  # an echo that does not retrace the free run gives no gradient
            estimate="lior_jax.learning.echo:estimate",
            residual="relative distance of rebuilt states",
        ),
        "equilibrium": Rule(
            name="equilibrium",
            title="equilibrium propagation",
            dynamics="dissipative",
            residual_limit=1e-3,  # a contrast of relaxations that have not settled is not the gradient
            estimate="lior_jax.learning.equilibrium:estimate",
            residual="residual of the relaxations",
            nudges=("centred", "one_sided", "random_sign"),
            ignores=(),
        ),
    },
)
