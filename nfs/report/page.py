"""The HTML page: everything inlined, every text escaped."""

import base64
from collections.abc import Sequence
from html import escape

from nfs.report.chart import format_number, line_chart
from nfs.report.data import Quarantine, ReportData, StageReport

MAX_VIDEO_BYTES = 20_000_000

_STYLE = """
:root{--ink:#1c2230;--soft:#5b6475;--line:#dfe3ea;--paper:#fff;--ground:#f5f6f9;--accent:#2b6cb0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--soft:#9aa4b6;--line:#313848;--paper:#1c2230;
--ground:#141924;--accent:#6cb0f2}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{margin:0;font-size:27px}h2{margin:0 0 6px;font-size:20px}
.sub,.time,figcaption,td.k{color:var(--soft)}.sub{margin:4px 0 20px;white-space:pre-wrap}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:18px 0;overflow-x:auto}
.flow{display:flex;flex-wrap:wrap;gap:8px 0;align-items:center;padding:0;margin:0;list-style:none}
.flow li{display:flex;align-items:center}
.flow li:not(:last-child)::after{content:"\\2192";padding:0 8px;color:var(--soft)}
.flow a{border:1px solid var(--line);border-radius:8px;padding:6px 10px;text-decoration:none;
color:var(--ink);background:var(--ground)}.flow small{color:var(--soft);margin-left:6px}
.grid{display:flex;flex-wrap:wrap;gap:16px;margin-top:12px;align-items:flex-start}
figure{margin:0;max-width:100%}figcaption{font-size:13px;margin-bottom:4px}
figure img,figure video{max-width:100%;max-height:560px;border-radius:6px;display:block}
figure video{min-width:320px}
figure img{image-rendering:auto;background:var(--ground)}
.chart svg{width:325px;max-width:100%;height:auto;display:block}.chart b{color:var(--ink)}
svg line{stroke:var(--line);stroke-width:1}svg text{font-size:10.5px;fill:var(--soft)}
svg polyline{fill:none;stroke:var(--accent);stroke-width:1.6;stroke-linejoin:round}
svg circle,svg rect{fill:var(--accent)}
table{border-collapse:collapse;margin-top:10px;font-size:14px}
td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{background:var(--accent);height:10px;border-radius:3px;min-width:2px}
ul.notes{margin:10px 0 0;padding-left:20px}
pre{background:var(--ground);border-radius:6px;padding:10px 12px;overflow-x:auto;margin:8px 0 0}
"""


def build_report(data: ReportData) -> str:
    """Return a complete HTML document that needs no other file and no network.

    Pictures are inlined; a video is inlined below 20 MB and named in a note above that.
    """
    stages = "".join(_stage(number, stage) for number, stage in enumerate(data.stages, 1))
    parts = [
        f"<h1>{escape(data.title)}</h1><p class=sub>{escape(data.subtitle)}</p>",
        _flow(data),
        stages,
        _timings(data),
        _quarantine(data.quarantined),
        _environment(data),
    ]
    return document(data.title, "".join(parts))


def document(title: str, body: str) -> str:
    """Return a page in the house's style around HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _flow(data: ReportData) -> str:
    items = "".join(
        f'<li><a href="#stage-{number}">{escape(stage.name)}'
        f"<small>{_seconds(stage.seconds)}</small></a></li>"
        for number, stage in enumerate(data.stages, 1)
    )
    return f"<section><h2>Flow</h2><ol class=flow>{items}</ol></section>"


def _stage(number: int, stage: StageReport) -> str:
    state = " &middot; finished earlier, not repeated" if stage.reused else ""
    images = "".join(_image(caption, data) for caption, data in stage.images)
    videos = "".join(_video(caption, data) for caption, data in stage.videos)
    curves = "".join(line_chart(name, curve) for name, curve in stage.curves.items())
    metrics = "".join(
        f"<tr><td class=k>{escape(key)}</td><td class=n>{format_number(value)}</td></tr>"
        for key, value in stage.metrics.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in stage.notes)
    return (
        f'<section id="stage-{number}"><h2>{number}. {escape(stage.name)}</h2>'
        f"<div class=time>{_seconds(stage.seconds)}{state}</div>"
        + (f"<p>{escape(stage.summary)}</p>" if stage.summary else "")
        + _wrap("<div class=grid>", videos + images, "</div>")
        + _wrap("<div class=grid>", curves, "</div>")
        + _wrap("<table>", metrics, "</table>")
        + _wrap("<ul class=notes>", notes, "</ul>")
        + "</section>"
    )


def _image(caption: str, data: bytes) -> str:
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption, quote=True)}" src="{_data_uri(data, _image_type(data))}">'
        "</figure>"
    )


def _video(caption: str, data: bytes) -> str:
    label = f"<figcaption>{escape(caption)}</figcaption>"
    if len(data) > MAX_VIDEO_BYTES:
        return f"<figure>{label}<p>{len(data) / 1e6:.0f} MB: too large to inline.</p></figure>"
    source = _data_uri(data, "video/mp4")
    return f'<figure>{label}<video controls preload="metadata" src="{source}"></video></figure>'


def _timings(data: ReportData) -> str:
    longest = max((stage.seconds for stage in data.stages), default=0.0) or 1.0
    total = sum(stage.seconds for stage in data.stages)
    rows = "".join(
        f"<tr><td>{escape(stage.name)}</td><td class=n>{_seconds(stage.seconds)}</td>"
        f'<td><div class=bar style="width:{260 * stage.seconds / longest:.0f}px"></div></td></tr>'
        for stage in data.stages
    )
    return (
        f"<section><h2>Timings</h2><table>{rows}<tr><th>all</th>"
        f"<td class=n>{_seconds(total)}</td><td></td></tr></table></section>"
    )


def _quarantine(entries: Sequence[Quarantine]) -> str:
    if not entries:
        return "<section><h2>Quarantine</h2><p>Every unit passed, none was given up.</p></section>"
    rows = "".join(
        f"<tr><td>{escape(e.stage)}</td><td>{escape(e.item)}</td><td>{escape(e.reason)}</td></tr>"
        for e in entries
    )
    return (
        "<section><h2>Quarantine</h2><table><tr><th>stage</th><th>item</th><th>reason</th></tr>"
        f"{rows}</table></section>"
    )


def _environment(data: ReportData) -> str:
    rows = "".join(
        f"<tr><td class=k>{escape(key)}</td><td>{escape(value)}</td></tr>"
        for key, value in data.environment.items()
    )
    commands = "".join(f"<pre>{escape(line)}</pre>" for line in data.how_to_open)
    return (
        "<section><h2>Environment</h2>"
        + _wrap("<table>", rows, "</table>")
        + _wrap("<h2>Open the records</h2>", commands, "")
        + "</section>"
    )


def _wrap(start: str, inside: str, end: str) -> str:
    return f"{start}{inside}{end}" if inside else ""


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s"


def _image_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    raise ValueError(f"picture starts with {data[:8]!r}; expected PNG or JPEG")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
