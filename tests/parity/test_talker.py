from tests.parity.talker_checks import checks


def test_talker_geometry_equals_the_recordings(shared_dir):
    results = checks(shared_dir / "parity" / "inversion")
    assert len(results) >= 9
    assert {name: result for name, result in results.items() if not result["ok"]} == {}
