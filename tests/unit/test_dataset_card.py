"""Dataset cards: numbers, distributions and reasons on one page without scripts."""

import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from nfs.report.dataset_card import MAX_REASONS, DatasetCard, Histogram, build_card


def card(**changes):
    values = {
        "title": "Clips <of> mine",
        "facts": {"kind": "clips"},
        "counts": {"clips_ok": 3.0, "frames": 75.0},
    }
    return DatasetCard(**(values | changes))


def test_histogram_counts_in_parts():
    histogram = Histogram("x", 0, 10, 5)
    histogram.add([0, 1, 2, 9.9])
    histogram.add([math.nan, 10, 11, -5])
    assert histogram.counts.tolist() == [3, 1, 0, 0, 3]
    assert (histogram.num_values, histogram.num_missing) == (7, 1)


def test_quantiles_are_those_of_numpy_to_a_bin():
    values = np.random.default_rng(0).normal(20, 5, 10_000)
    histogram = Histogram("x", 0, 40, 80)
    for part in np.array_split(values, 7):
        histogram.add(part)
    for fraction in (0.05, 0.5, 0.95):
        assert abs(histogram.quantile(fraction) - np.quantile(values, fraction)) < 0.5
    assert math.isnan(Histogram("y", 0, 1).quantile(0.5))


def test_values_at_hand_are_exact():
    histogram = Histogram.of("x", [0.2, 0.2, None, 0.24, 3.0], num_bins=4)
    assert histogram.counts.tolist() == [3, 0, 0, 1]
    assert histogram.num_missing == 1
    assert histogram.quantile(0.5) == pytest.approx(0.22)
    assert Histogram.of("same", [5.0, 5.0]).num_values == 2
    assert Histogram.of("none", []).num_values == 0


def test_page_is_whole_and_escaped():
    yaw, empty = Histogram("yaw, degrees", -90, 90, 12), Histogram("nme", 0, 10)
    yaw.add([-10, 0, 5, 30])
    page = build_card(
        card(
            histograms=[yaw, empty],
            tallies={"status": {"ok": 3, "no_face & more": 1}},
            quarantined=[("a<b>.mp4", "decode_error: Invalid"), ("c.mp4", "no_face: none")],
        )
    )
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "a&lt;b&gt;.mp4" in page
    assert "nme: no values" in page
    assert "no_face &amp; more" in page
    figures = page.split("<svg")[1:]
    assert len(figures) == 3
    for figure in figures:
        ElementTree.fromstring("<svg" + figure.split("</svg>")[0] + "</svg>")
    bars = ElementTree.fromstring("<svg" + figures[0].split("</svg>")[0] + "</svg>").findall("rect")
    heights = [float(bar.get("height")) for bar in bars]
    assert len(bars) == 12
    assert sum(height > 0 for height in heights) == len({-10 // 15, 0, 30 // 15})
    HTMLParser().feed(page)


def test_equal_content_gives_equal_bytes_and_long_lists_are_cut():
    many = [(f"{i}.mp4", "decode_error: x") for i in range(MAX_REASONS + 5)]
    page = build_card(card(quarantined=many))
    assert page == build_card(card(quarantined=many))
    assert "and 5 more" in page
    assert page.count("decode_error: x") == MAX_REASONS
    assert "Nothing was left out" in build_card(card())


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_bars_of_nothing(counts):
    from nfs.report.chart import bar_chart

    assert "<svg" in bar_chart("none", ["a"] * len(counts), counts)
