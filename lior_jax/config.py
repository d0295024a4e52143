"""Reading configurations: from YAML and `--set` to validated settings, with readable error messages.

The sections and their keys are in `settings`.
"""

import difflib
import re
import reprlib
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import ErrorDetails

from lior_jax.errors import UserError
from lior_jax.settings import DERIVED, Config, ModelConfig, Section, is_text
from lior_jax.storage import files

_S = TypeVar("_S", bound=Section)

# The shipped configurations are in the package if installed, else at the top of the repository.
_SHIPPED = next((path for path in (Path(__file__).parents[at] / "configs" for at in (0, 1)) if path.is_dir()), None)

_COMPLAINTS = 20
"""Largest number of mistakes reported at once."""

MOVED = {
    f"model.{old}": f"model.{new}"
    for old, new in {
        "chart_dim": "geometry.chart_dim",
        "metric": "geometry.metric",
        "metric_block": "geometry.block",
        "metric_rank": "geometry.rank",
        "base_metric": "geometry.base_metric",
        "frame": "geometry.frame",
        "rotor_layers": "geometry.rotor_layers",
        "resilience": "geometry.resilience",
        "curvature_terms": "geometry.curvature_terms",
        "taps": "convolution.taps",
        "memory": "convolution.long",
        "lag_prior": "retrieval.lag_prior",
        "adaptive_order": "retrieval.adaptive_order",
        "fractional_order": "retrieval.fractional_order",
        "products": "retrieval.products",
        "retrieval_tile": "retrieval.tile",
        "field": "field.evolution",
        "potential_units": "flow.units",
        "leapfrog_steps": "flow.steps",
        "step_size": "flow.step_size",
        "carry_momentum": "flow.carry_momentum",
        "relaxation_steps": "relaxation.steps",
        "relaxation_rate": "relaxation.rate",
        "relaxation_momentum": "relaxation.momentum",
    }.items()
}
"""Keys that moved, and their new names."""


_BREAKS = str.maketrans({"\n": r"\n", "\r": r"\r", "\x85": r"\N", "\u2028": r"\L", "\u2029": r"\P"})
"""Line endings escaped for YAML's double quotes; unescaped, they would be folded to spaces."""


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-3` as a number (YAML 1.1 does not) and refuses duplicate keys and keys that are not text."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            fault = "is not text" if not isinstance(key, str) else "appears twice" if key in seen else None
            if fault:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {fault}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read and validate a YAML configuration.

    Args:
        path: the file, or the bare name of a shipped one, such as `quickstart`.
        overrides: `section.key=value` strings, with values in YAML; text values are taken literally, with or without quotes,
            except `null`.

    Raises:
        UserError: a missing or malformed file, an unknown key, a wrong type or an invalid combination; the message gives the
            key's path and the allowed values.
    """
    return parse(_read(path), str(path), overrides)


def _read(path: str | Path) -> str:
    try:
        return files.read(_shipped(Path(path)) or Path(path).expanduser(), "The configuration").decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"There is no configuration {path}; {_neighbours(Path(path))}.") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"The configuration {path} is not UTF-8 (byte {problem.start}); give a YAML file.") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"The configuration {str(path)!r} cannot be read: {problem}.") from None


def _shipped(path: Path) -> Path | None:
    """The shipped file with a bare name, unless that is an existing file; None if there is none."""
    if _SHIPPED is None or path.name != str(path) or path.suffix or path.is_file():
        return None
    found = _SHIPPED / f"{path}.yaml"
    return found if found.is_file() else None


def parse(text: str, source: str, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read and validate the text of a YAML document like `load`; `source` names it in messages."""
    values = _mapping(text, source)
    for override in overrides:
        _apply(values, override)
    return validate(values, source)


class _ModelFile(Section):
    """The text of a model's section alone, for exported weights."""

    model: ModelConfig


def load_model(path: str | Path) -> ModelConfig:
    """Read the `model` section of a file with no other section; raises `UserError` as `load` does."""
    return validate_model(_mapping(_read(path), str(path)), str(path))


def validate_model(values: dict[str, Any], source: str) -> ModelConfig:
    """The model's section of `{"model": …}`; raises `UserError` as `load` does."""
    return _validated(_ModelFile, values, source).model


def validate(values: dict[str, Any], source: str) -> Config:
    """The `Config` of nested plain values; raises `UserError` as `load` does."""
    return _validated(Config, values, source)


def _validated(kind: type[_S], values: dict[str, Any], source: str) -> _S:
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as problem:
        complaints = [_explain(error) for error in problem.errors()]
        if len(complaints) > _COMPLAINTS:
            complaints[_COMPLAINTS:] = [f"and {len(complaints) - _COMPLAINTS} more"]
        raise UserError(_one_line(f"{source}: " + "; ".join(complaints) + ".")) from None


def replace(config: Config, section: str, **values: Any) -> Config:
    """The configuration with new values for some keys of a section, such as `model.flow`.

    Raises:
        UserError: invalid values, or an invalid combination.
    """
    changed = config.model_dump()
    changed["model"].pop("dynamics")  # derived from the rule again
    place = _section(changed, section.split("."))
    assert place is not None, f"{section} is not a section"
    place.update(values)
    return validate(changed, "The changed configuration")


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ, as `section.key: old → new`."""
    before, after = flat(old), flat(new)
    return [f"{key}: {before[key]!r} → {after[key]!r}" for key in before if before[key] != after[key]]


def flat(section: Section, prefix: str = "") -> dict[str, Any]:
    """All values of a configuration, or of one of its sections, by key, such as `model.flow.steps`."""
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            values |= flat(value, f"{prefix}{name}.")
        elif field.json_schema_extra is not DERIVED:
            values[prefix + name] = value
    return values


def _mapping(text: str, source: str) -> dict[str, Any]:
    values = _yaml(text, source)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{source} must be a mapping of sections such as `model:` and `training:`, not {_kind(values)}.")
    return values


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: it is nested too deeply.") from None
    except Exception as problem:  # the library's own error, and those of its parsers of numbers and dates
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or str(problem)[:200] or type(problem).__name__
        raise UserError(_one_line(f"{source}{where} is not valid YAML: {reason}.")) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    parts = key.strip().split(".")
    if not sign or len(parts) < 2 or not all(parts):
        example = "section.key=value, for example --set training.steps=500"
        raise UserError(f"--set {_short(override)} must look like {example}.")
    given = _text(value) if _holds_text(parts) else _yaml(value, f"--set {_short(override)}")
    section = _section(values, parts[:-1])
    if section is not None:
        section[parts[-1]] = given


def _text(value: str) -> str | None:
    """The text after `=`, literally, including whitespace and punctuation, except for quotes around all of it."""
    if value == "null":
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        if value[0] == "'" and "'" not in value[1:-1].replace("''", ""):
            return value[1:-1].replace("''", "'")
        with suppress(UserError):
            inner = _yaml(value.translate(_BREAKS), value)
            return inner if isinstance(inner, str) else value
    return value


def _holds_text(location: list[str]) -> bool:
    section = _section_at(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return field is not None and is_text(field.annotation)


def _section(values: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """The mapping at a path, created if missing; None for another type, which validation reports."""
    for name in names:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            return None
    return values


def _explain(error: ErrorDetails) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if path in MOVED and error["type"] in ("extra_forbidden", "model_type"):
        return f"{path} is now {MOVED[path]}" + (": kernel, master or off" if path == "model.field" else "")
    if error["type"] == "extra_forbidden":
        known = _keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? Allowed here" if close else "allowed here"
        return f"unknown key {path}; {hint}: {', '.join(known)}"
    if error["type"] == "value_error":
        between = "." if _section_at(location) else ": "  # a section's own messages begin with the key
        return between.join(filter(None, [path, str(error["ctx"]["error"])]))
    if error["type"] == "literal_error":
        return f"{path} is {_short(error['input'])}, but must be {error['ctx']['expected']}"
    if error["type"] == "model_type":
        return f"{path} must be a section with the keys {', '.join(_keys(location))}, not {_kind(error['input'])}"
    message = error["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{path} is {_short(error['input'])}, but {message}"


def _short(value: Any) -> str:
    """A value shortened for a message. With YAML's aliases a few lines can expand to more than fits in memory."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 3, 80, 80
    return shown.repr(value)


def _one_line(text: str) -> str:
    """A message on one line, without unprintable characters."""
    words = " ".join(text.split())
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in words)


def _keys(location: list[str]) -> list[str]:
    section = _section_at(location)
    assert section is not None
    return sorted(name for name, field in section.model_fields.items() if field.json_schema_extra is not DERIVED)


def _section_at(location: list[str]) -> type[Section] | None:
    """The section class at a path of keys; None for a value or an unknown key."""
    section: Any = Config
    for name in location:
        field = section.model_fields.get(name) if isinstance(section, type) and issubclass(section, Section) else None
        section = field.annotation if field else None
    return section if isinstance(section, type) and issubclass(section, Section) else None


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    found = sorted(str(candidate) for candidate in folder.glob("*.yaml"))
    shipped = sorted(candidate.stem for candidate in _SHIPPED.glob("*.yaml")) if _SHIPPED else []
    close = difflib.get_close_matches(str(path), [*found, *shipped], n=1)
    if close:
        return f"did you mean {close[0]}? Give the path of a YAML file"
    found = found or shipped
    return f"there are {', '.join(found)}" if found else "give the path of a YAML file"
