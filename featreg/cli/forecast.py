"""What ``featreg extract`` says before it starts: what there is to do, and what it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featreg.cli.tables import format_table

if TYPE_CHECKING:
    from featreg.engine.planning.estimate import Estimate

__all__ = ["forecast", "format_bytes", "format_seconds"]

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_SPANS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


def forecast(found: Estimate) -> str:
    """An estimate for people; what is a guess is called one."""
    room = "free disk unknown" if found.free is None else f"{format_bytes(found.free)} free"
    if found.resumed:
        times = "" if found.rows_left <= found.rows else ", where a row counts once for each pass"
        return (
            f"to do in {found.store}: {found.rows_left} rows{times}, {format_bytes(found.bytes_left)}; {room}"
            if found.rows_left
            else f"to do in {found.store}: nothing"
        )
    if found.adds is not None and not found.rows:
        return f"{_task(found)} {found.store}: none"
    rows = [
        (
            layer.key,
            "x".join(map(str, layer.shape)),
            layer.dtype,
            ("at most " if layer.at_most else "") + format_bytes(layer.bytes),
        )
        for layer in found.layers
    ]
    table = format_table(("layer", "a row", "dtype", f"{found.rows} rows"), rows, width=1000)
    lines = [
        f"{_task(found)} {found.store}: {found.rows} rows, {format_bytes(found.bytes)}; {room}",
        *(f"  {line}" for line in table.splitlines()),
        *_besides(found),
        f"an interruption costs at most {min(found.task_rows, found.rows)} rows a worker",
        *_time(found),
    ]
    return "\n".join(lines)


def _task(found: Estimate) -> str:
    return {"layers": "layers to add to", "rows": "rows to add to", None: "to do in"}[found.adds]


def _besides(found: Estimate) -> list[str]:
    """What is written beside what is added."""
    more = found.bytes_left - found.bytes
    return [f"and {format_bytes(more)} that were left to do, or are written anew"] if more else []


def format_bytes(count: float) -> str:
    """A size in decimal units, as disks are sold: ``11.5 kB``."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 99.95 else f"{count:.1f} {_UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """A span of time, in the unit in which it is at least one and a half."""
    for size, unit in _SPANS:
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _time(found: Estimate) -> list[str]:
    if found.probe is None:
        return []
    tried = f"{found.probe.samples} samples tried: {1 / max(found.probe.load, 1e-9):,.0f}/s to read and decode"
    if found.probe.model is None or found.seconds is None:
        return [f"no guess at the time: the model ran on none of the {tried}"]
    fits = ", without the fits of derived layers" if found.to_fit else ""
    model = f"{1 / max(found.probe.model, 1e-9):,.0f}/s in the model"
    return [f"about {format_seconds(found.seconds)} for one worker{fits}, a guess ({tried}, {model})"]
