"""The recorded outputs of the original face-model codes, where the recordings are at hand."""

from tests.parity.morphable_checks import checks


def test_every_recorded_value_is_met(shared_dir):
    results = checks(shared_dir / "parity" / "morphable")
    assert len(results) >= 60
    assert {name: r for name, r in results.items() if not r["ok"]} == {}


def test_an_empty_folder_has_nothing_to_check(tmp_path):
    assert checks(tmp_path) == {}
