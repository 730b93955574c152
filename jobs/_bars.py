"""How far a job is, on standard error: a bar in a terminal, plain lines now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Protocol, cast

INTERVAL_S = 30.0
# What is done in the first second was done by an earlier launch; it would make rates absurd.
WARM_UP_S = 1.0


class Bar(Protocol):
    """What jobs use of a progress bar."""

    n: int
    """Units that are done."""

    def update(self, n: int = 1) -> object:
        """Count units as done."""
        ...

    def refresh(self) -> object:
        """Show `n`, set from outside, when it is time."""
        ...

    def close(self) -> object:
        """Show the end."""
        ...


class ProgressLines:
    """A `Bar` for logs: a line each `INTERVAL_S` at most, and one at the end.

    Args:
        job: Name at the beginning of lines.
        total: Units of the whole job.
        unit: Name of the units.
        stream: Where lines go.
        initial: Units that are done already.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        job: str,
        total: int,
        unit: str,
        *,
        stream: IO[str],
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.n, self.total, self._job, self._unit = initial, total, job, unit
        self._stream, self._clock = stream, clock
        self._begin_s = self._shown_s = clock()
        self._base: tuple[float, int] | None = None
        self._shown: int | None = None

    def update(self, n: int = 1) -> None:
        """Count units as done."""
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        """Write a line if the last one is old enough."""
        now_s = self._clock()
        if self._base is None and now_s - self._begin_s >= WARM_UP_S:
            self._base = now_s, self.n
        if now_s - self._shown_s >= INTERVAL_S:
            self._write(now_s)

    def close(self) -> None:
        """Write the last line, unless it has been written."""
        if self.n != self._shown:
            self._write(self._clock())

    def _write(self, now_s: float) -> None:
        parts = [f"{self._job}: {self.n} of {self.total} {self._unit}"]
        if self.total > 0:
            parts.append(f"{100 * self.n // self.total} %")
        base_s, base = self._base or (now_s, self.n)
        if now_s > base_s and self.n > base:
            rate = (self.n - base) / (now_s - base_s)
            parts.append(f"{rate:.3g} {self._unit}/s")
            if self.n < self.total:
                parts.append(f"{_duration((self.total - self.n) / rate)} left")
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()
        self._shown_s, self._shown = now_s, self.n


def open_bar(job: str, total: int, unit: str, *, initial: int = 0, quiet: bool = False) -> Bar:
    """Return a bar on standard error; the caller closes it.

    Args:
        job: Its name.
        total: Units of the whole job.
        unit: Name of the units.
        initial: Units that are done already.
        quiet: Show nothing.
    """
    from tqdm import tqdm

    if not quiet and not sys.stderr.isatty():
        return ProgressLines(job, total, unit, stream=sys.stderr, initial=initial)
    bar = tqdm(
        total=total,
        unit=unit,
        desc=job,
        initial=initial,
        disable=quiet,
        file=sys.stderr,
        mininterval=0.5,
    )
    return cast(Bar, bar)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
