"""The section of a report about where and when a run was trained: `RUN/environment.json` in HTML."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lior_jax.analysis.page import figures, heading, note, table
from lior_jax.errors import UserError
from lior_jax.training import environment

_NONE = "–"


def sections(run: Path) -> Iterator[str]:
    """A row per session, and the environment of the newest."""
    yield heading("Sessions and environment")
    try:
        sessions = environment.read(run)
    except UserError as problem:
        yield note(str(problem))
        return
    if not sessions:
        yield note("The run has no record of where it was trained.")
        return
    yield figures(("begin, UTC", "minutes", "steps", "devices", "commit"), (_row(one) for one in sessions))
    yield note("A session without minutes was cut off, or has not ended yet.")
    yield heading("The newest session", level=3)
    yield table(_details(sessions[-1]))


def first_weights(run: Path) -> str | None:
    """The origin of the run's initial parameters, None if they were drawn at random."""
    try:
        source = next((one["init_from"] for one in environment.read(run) if one.get("init_from")), None)
    except UserError:  # shown in the section on sessions
        return None
    if not source:
        return None
    return source["path"] if source["step"] is None else f"{source['path']}, step {source['step']:,}"


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    begin, end = session["begin"], session.get("end")
    minutes = _NONE
    if end:
        minutes = f"{(datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() / 60:,.1f}"
    steps = f"{session.get('from_step', 0):,} – {'' if session.get('to_step') is None else format(session['to_step'], ',')}"
    return begin.replace("T", " ").removesuffix("Z"), minutes, steps, _devices(session), _commit(session)


def _details(session: dict[str, Any]) -> Iterator[tuple[str, str]]:
    host = session.get("host") or {}
    yield "command", " ".join(session.get("command", [])) or _NONE
    yield "devices", _devices(session)
    if session.get("retrieval"):
        yield "retrieval", session["retrieval"]
    memory = f"{host['memory_bytes'] / 2**30:.1f} GiB of memory" if host.get("memory_bytes") else None
    cores = f"{host['cores']} cores" if host.get("cores") else None
    yield "host", ", ".join(filter(None, [host.get("processor"), cores, memory, host.get("system")])) or _NONE
    yield "source", _commit(session, whole=True)
    yield from session.get("variables", {}).items()
    versions = {"python": session.get("python", _NONE), **session.get("packages", {})}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _devices(session: dict[str, Any]) -> str:
    devices = session.get("devices", {}).items()
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in devices) or _NONE


def _commit(session: dict[str, Any], whole: bool = False) -> str:
    source = session.get("source")
    if not source:
        return _NONE
    return source["commit"][: None if whole else 10] + ("" if source["clean"] else ", changed since")
