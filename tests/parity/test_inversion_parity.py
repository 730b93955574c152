"""The recorded outputs of PTI's projector and regulariser, where the recordings are at hand."""

from tests.parity.inversion_checks import checks


def test_every_recorded_value_is_met(shared_dir):
    results = checks(shared_dir / "parity" / "inversion")
    assert len(results) >= 10
    assert {name: r for name, r in results.items() if not r["ok"]} == {}
