"""The recorded outputs of the original audio modules, where the recordings are at hand."""

from tests.parity.audio_checks import checks


def test_every_recorded_value_is_met(shared_dir):
    results = checks(shared_dir / "parity" / "audio")
    assert len(results) >= 17
    assert {name: r for name, r in results.items() if not r["ok"]} == {}
