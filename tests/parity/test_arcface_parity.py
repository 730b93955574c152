"""The recorded outputs of the original ArcFace training, where the recordings are at hand."""

from tests.parity.arcface_checks import checks


def test_every_recorded_value_is_met(shared_dir):
    results = checks(shared_dir / "parity" / "arcface")
    assert len(results) >= 200
    assert {name: r for name, r in results.items() if not r["ok"]} == {}
