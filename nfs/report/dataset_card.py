"""Dataset cards: what a `clips` or `fits` artifact holds, as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfs.report.chart import bar_chart, format_number
from nfs.report.page import document

CARD_FILE = "card.html"
MAX_REASONS = 200
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class Histogram:
    """A distribution that is filled in parts, in bins of fixed limits.

    Values beyond the limits count in the first and last bin; those that are not finite apart.

    Args:
        name: What is counted, with its unit.
        low: Lower limit of the first bin.
        high: Upper limit of the last bin.
        num_bins: Number of bins.
    """

    name: str
    low: float
    high: float
    num_bins: int = 24
    counts: NDArray[np.int64] = field(init=False)
    num_missing: int = field(default=0, init=False)
    _values: NDArray[np.float64] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.num_bins, np.int64)

    @classmethod
    def of(cls, name: str, values: Sequence[float | None], num_bins: int = 24) -> Self:
        """Return the distribution of values that are all at hand, with limits that fit them."""
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        known = numbers[np.isfinite(numbers)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        histogram = cls(name, float(low), float(high), num_bins)
        histogram.add(numbers)
        histogram._values = known
        return histogram

    def add(self, values: ArrayLike) -> None:
        """Count values; None and NaN are missing."""
        numbers = np.asarray(values, np.float64).ravel()
        known = numbers[np.isfinite(numbers)]
        self.num_missing += len(numbers) - len(known)
        places = (known - self.low) / (self.high - self.low) * self.num_bins
        bins = np.clip(places.astype(np.int64), 0, self.num_bins - 1)
        self.counts += np.bincount(bins, minlength=self.num_bins)

    @property
    def num_values(self) -> int:
        """Return how many values were counted."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """Return the limits of the bins."""
        return np.linspace(self.low, self.high, self.num_bins + 1)

    def quantile(self, fraction: float) -> float:
        """Return a quantile; to the precision of a bin when the values came in parts."""
        if not self.num_values:
            return float("nan")
        if self._values is not None:
            return float(np.quantile(self._values, fraction))
        wanted = fraction * self.num_values
        number = int(np.searchsorted(np.cumsum(self.counts), wanted))
        number = min(number, self.num_bins - 1)
        before = self.counts[:number].sum()
        inside = (wanted - before) / max(int(self.counts[number]), 1)
        edges = self.edges()
        return float(edges[number] + np.clip(inside, 0, 1) * (edges[number + 1] - edges[number]))


@dataclass(frozen=True)
class DatasetCard:
    """Content of a card."""

    title: str
    facts: Mapping[str, str]
    """What it is: kind, sources, settings worth knowing."""
    counts: Mapping[str, float]
    """Numbers by name."""
    histograms: Sequence[Histogram] = ()
    """Distributions; those without a value are named as missing."""
    tallies: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Counts by category, e.g. the status of frames."""
    quarantined: Sequence[tuple[str, str]] = ()
    """(item, reason) of what was given up."""


def build_card(card: DatasetCard) -> str:
    """Return a complete HTML page; equal content gives equal bytes."""
    facts = "".join(
        f"<tr><td class=k>{escape(key)}</td><td>{escape(value)}</td></tr>"
        for key, value in card.facts.items()
    )
    counts = "".join(
        f"<tr><td class=k>{escape(key)}</td><td class=n>{format_number(value)}</td></tr>"
        for key, value in card.counts.items()
    )
    charts = "".join(_histogram(histogram) for histogram in card.histograms)
    charts += "".join(
        bar_chart(name, list(tally), list(tally.values())) for name, tally in card.tallies.items()
    )
    return document(
        card.title,
        f"<h1>{escape(card.title)}</h1>"
        f"<section><h2>What it is</h2><table>{facts}</table></section>"
        f"<section><h2>Numbers</h2><table>{counts}</table></section>"
        f"<section><h2>Distributions</h2><div class=grid>{charts}</div></section>"
        + _quarantine(card.quarantined),
    )


def _histogram(histogram: Histogram) -> str:
    missing = f", {histogram.num_missing} without" if histogram.num_missing else ""
    if not histogram.num_values:
        caption = f"{histogram.name}: no values{missing}"
        return f"<figure class=chart><figcaption>{escape(caption)}</figcaption></figure>"
    low, middle, high = (format_number(round(histogram.quantile(q), 3)) for q in _QUANTILES)
    caption = (
        f"{histogram.name}: median {middle}, 5 to 95 % {low} to {high} "
        f"({histogram.num_values}{missing})"
    )
    edges = histogram.edges()
    labels = [""] * histogram.num_bins
    for place, edge in ((0, 0), (histogram.num_bins // 2, histogram.num_bins // 2), (-1, -1)):
        labels[place] = format_number(round(edges[edge], 3))
    return bar_chart(caption, labels, histogram.counts.tolist(), narrow=True)


def _quarantine(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return "<section><h2>Left out</h2><p>Nothing was left out.</p></section>"
    reasons: dict[str, int] = {}
    for _, reason in entries:
        status = reason.split(":")[0]
        reasons[status] = reasons.get(status, 0) + 1
    chart = bar_chart("reasons", list(reasons), list(reasons.values()))
    rows = "".join(
        f"<tr><td>{escape(item)}</td><td>{escape(reason)}</td></tr>"
        for item, reason in entries[:MAX_REASONS]
    )
    more = len(entries) - MAX_REASONS
    note = f"<p>and {more} more, all in manifest.json</p>" if more > 0 else ""
    return (
        f"<section><h2>Left out: {len(entries)}</h2><div class=grid>{chart}</div>"
        f"<table><tr><th>item</th><th>reason</th></tr>{rows}</table>{note}</section>"
    )
