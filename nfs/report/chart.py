"""Line and bar charts as inline SVG: no script, no external file."""

import math
from collections.abc import Sequence
from html import escape

from nfs.report.data import Curve

WIDTH, HEIGHT = 325, 165
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
MAX_POINTS = 400


def line_chart(name: str, curve: Curve) -> str:
    """Return a figure with one series; says so when there is nothing finite to draw."""
    points = [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
    dropped = len(curve) - len(points)
    caption = escape(name)
    if dropped:
        caption += f" <em>({dropped} values not finite)</em>"
    if not points:
        return f"<figure class=chart><figcaption>{caption}</figcaption><p>no data</p></figure>"
    last = f"<b>{format_number(points[-1][1])}</b>"
    body = _svg(name, thin(points, MAX_POINTS))
    return f"<figure class=chart><figcaption>{caption} {last}</figcaption>{body}</figure>"


def bar_chart(
    name: str, labels: Sequence[str], counts: Sequence[int], *, narrow: bool = False
) -> str:
    """Return a figure of bars: upright with a few labels (narrow), or a row for each label."""
    caption = f"<figcaption>{escape(name)}</figcaption>"
    label = escape(name, quote=True)
    top = max(counts, default=0) or 1
    if narrow:
        step, floor = (WIDTH - LEFT - RIGHT) / len(counts), HEIGHT - BOTTOM
        heights = [n / top * (floor - TOP) for n in counts]
        bars = "".join(
            f'<rect x="{LEFT + i * step + 0.5:.1f}" y="{floor - h:.1f}" '
            f'width="{step - 1:.1f}" height="{h:.1f}"/>'
            for i, h in enumerate(heights)
        )
        texts = "".join(
            f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{floor + 17}" text-anchor="middle">'
            f"{escape(text)}</text>"
            for i, text in enumerate(labels)
            if text
        )
        texts += (
            f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end">{format_number(top)}</text>'
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>'
        )
        height = HEIGHT
    else:
        height, middle = 8 + 18 * len(counts), 2.4 * LEFT
        bars = "".join(
            f'<rect x="{middle}" y="{4 + 18 * i}" height="12" '
            f'width="{max(n / top * (WIDTH - middle - LEFT), 1):.1f}"/>'
            for i, n in enumerate(counts)
        )
        texts = "".join(
            f'<text x="{middle - 5}" y="{14 + 18 * i}" text-anchor="end">{escape(text)}</text>'
            f'<text x="{middle + n / top * (WIDTH - middle - LEFT) + 5:.1f}" y="{14 + 18 * i}">'
            f"{format_number(n)}</text>"
            for i, (text, n) in enumerate(zip(labels, counts, strict=True))
        )
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{bars}{texts}</svg>'
    return f"<figure class=chart>{caption}{svg}</figure>"


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """Keep the lowest and highest point of each bucket, so that spikes survive."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        low = min(bucket, key=lambda p: p[1])
        high = max(bucket, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


def format_number(value: float) -> str:
    """Return a short decimal form."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4g}"


def _svg(name: str, points: Sequence[tuple[float, float]]) -> str:
    x0, x1 = _range([x for x, _ in points], pad=0)
    y0, y1 = _range([y for _, y in points], pad=0.05)
    if y0 < 0 <= min(y for _, y in points):
        y0 = 0.0  # no room below zero for what cannot be negative

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return across, down

    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    end = place(*points[-1])
    floor = HEIGHT - BOTTOM
    marks = []
    for fraction in (0.0, 0.5, 1.0):
        value = y0 + fraction * (y1 - y0)
        y = place(x0, value)[1]
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{format_number(value)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name, quote=True)}">'
        f"{''.join(marks)}"
        f'<text x="{LEFT}" y="{floor + 17}">{format_number(points[0][0])}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{floor + 17}" text-anchor="end">'
        f"{format_number(points[-1][0])}</text>"
        f'<polyline points="{path}"/>'
        f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="2.5"/></svg>'
    )


def _range(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.5 or 1.0
        return low - margin, high + margin
    return low - pad * (high - low), high + pad * (high - low)
