"""Progress for people: a bar on a terminal, a plain line now and then elsewhere, a summary at the end."""

from __future__ import annotations

import sys
from typing import IO

from featreg.engine.monitoring.facts import Facts, Teller
from featreg.extras import data_extra

with data_extra():
    from tqdm import tqdm

__all__ = ["EVERY", "Bar", "Lines", "progress_teller", "summary"]

EVERY = 30.0
"""Seconds between two plain lines."""


def progress_teller(rows: int, there: int, stream: IO[str] | None = None) -> Teller:
    """A bar where ``stream`` (standard error) is a terminal, else plain lines."""
    stream = sys.stderr if stream is None else stream
    return Bar(rows, there, stream) if stream.isatty() else Lines(stream)


class Bar:
    """A bar of all rows, with the rate of this run and the time that is left, the failures and the bottleneck."""

    def __init__(self, rows: int, there: int, stream: IO[str]) -> None:
        self._stream = stream
        self._bar = tqdm(total=rows, initial=there, unit="row", file=stream, dynamic_ncols=True)
        self._done = 0

    def tell(self, facts: Facts) -> None:
        self._shift(facts.there - self._bar.initial)
        self._bar.set_postfix_str(_notes(facts), refresh=False)
        self._bar.update(facts.done - self._done)
        self._done = facts.done

    def close(self, facts: Facts) -> None:
        self.tell(facts)
        self._bar.close()
        print(summary(facts), file=self._stream, flush=True)

    def _shift(self, rows: int) -> None:
        """Rows that others have done: they fill the bar, and say nothing of our rate."""
        self._bar.initial += rows
        self._bar.n += rows
        self._bar.last_print_n += rows


class Lines:
    """The same facts in a line of their own, every :data:`EVERY` seconds; a run that is shorter says nothing."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._told = 0.0

    def tell(self, facts: Facts) -> None:
        if facts.elapsed - self._told >= EVERY:
            self._told = facts.elapsed
            self._print(_line(facts))

    def close(self, facts: Facts) -> None:
        if self._told:
            self._print(summary(facts))

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def summary(facts: Facts) -> str:
    """What a worker did with a pass, and where the time went."""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts.seconds.items())
    return (
        f"{facts.done} rows in {tqdm.format_interval(facts.elapsed)}, {facts.rate:.1f} rows/s, {_notes(facts)} "
        f"({stages}, overlapping)"
    )


def _line(facts: Facts) -> str:
    done = facts.there + facts.done
    left = "?" if facts.eta is None else tqdm.format_interval(facts.eta)
    share = f"{done / facts.rows:.0%}" if facts.rows else "100%"
    return f"{done} of {facts.rows} rows ({share}), {facts.rate:.1f} rows/s, {left} left, {_notes(facts)}"


def _notes(facts: Facts) -> str:
    return f"{facts.failed} failed, bottleneck: {facts.bottleneck or '?'}"
