import io
import math
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from nfs.report import Quarantine, ReportData, StageReport, build_report
from nfs.report.chart import format_number, line_chart, thin
from nfs.report.page import MAX_VIDEO_BYTES


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def _data(**changes) -> ReportData:
    stage = StageReport(
        name="train <x>",
        seconds=75.4,
        metrics={"loss/g": 0.125, "bad/nan": math.nan},
        images=[("grid & more", _png())],
        videos=[("result", b"\0\0\0 ftyp")],
        curves={"loss/d": [(0, 1.0), (100, 0.5)]},
        notes=["<script>alert(1)</script>"],
    )
    values = {
        "title": "Demo <b>",
        "stages": [StageReport("preprocess", 1.25, reused=True), stage],
        "quarantined": [Quarantine("preprocess", "a&b.mp4", "no_face")],
        "environment": {"torch": "2.12"},
        "how_to_open": ["mlflow server --backend-store-uri 'x'"],
    }
    return ReportData(**(values | changes))


def test_page_contains_the_inputs_and_escapes_every_text():
    page = build_report(_data())
    for text in (
        "Demo &lt;b&gt;",
        "train &lt;x&gt;",
        "grid &amp; more",
        "a&amp;b.mp4",
        "no_face",
        "0.125",
        "nan",
        "loss/d",
        "2.12",
        "mlflow server",
        "finished earlier",
        "data:image/png;base64,",
        "data:video/mp4;base64,",
        "75 s",
    ):
        assert text in page, text
    assert "<script" not in page
    assert "<b>" not in page.split("</title>")[0]


def test_page_needs_no_other_file():
    page = build_report(_data())
    assert "http" not in page.replace("http-equiv", "")
    assert 'src="data:' in page
    assert "<link" not in page


def test_large_video_is_named_not_inlined():
    stage = StageReport("render", videos=[("film", b"x" * (MAX_VIDEO_BYTES + 1))])
    page = build_report(_data(stages=[stage]))
    assert "too large to inline" in page
    assert len(page) < 100_000


def test_empty_quarantine_says_so():
    assert "Every unit passed" in build_report(_data(quarantined=[]))


def test_unknown_picture_format_is_refused():
    with pytest.raises(ValueError, match="expected PNG or JPEG"):
        build_report(_data(stages=[StageReport("x", images=[("gif", b"GIF89a")])]))


def test_chart_is_valid_svg_with_finite_points_only():
    figure = line_chart('loss "x"', [(0, 1.0), (1, math.nan), (2, 3.0)])
    svg = figure[figure.index("<svg") : figure.index("</svg>") + 6]
    root = ET.fromstring(svg)
    assert len(root.find("polyline").get("points").split()) == 2
    assert "1 values not finite" in figure


def test_chart_without_data_and_constant_chart():
    assert "no data" in line_chart("x", [(0, math.inf)])
    assert "<polyline" in line_chart("x", [(0, 2.0), (1, 2.0)])
    assert "<polyline" in line_chart("x", [(0, 0.0)])


def test_thinning_keeps_spikes_and_order():
    points = [(float(i), 0.0) for i in range(5000)]
    points[1234] = (1234.0, 9.0)
    kept = thin(points, 400)
    assert len(kept) <= 400
    assert (1234.0, 9.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (0.12345, "0.1235"), (12345.6, "12,346"), (1e9, "1e+09")]
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
