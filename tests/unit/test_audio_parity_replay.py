import json

import pytest

from tests.parity import replay


def test_checks_pass_or_fail_by_their_tolerance():
    assert replay.check(0.0, 0.0)["ok"]
    assert not replay.check(2e-5, 1e-5)["ok"]
    assert not replay.check(float("nan"), 1.0)["ok"]


def test_an_unknown_folder_is_bad_input(tmp_path):
    assert replay.main(["audio", str(tmp_path / "absent")]) == 2


def test_a_family_without_checks_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replay.importlib.util, "find_spec", lambda _: None)
    assert replay.main(["morphable", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_empty_folder_fails_because_no_check_ran(tmp_path, capsys):
    assert replay.main(["audio", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out) == {}


def test_one_failing_check_fails_the_replay(tmp_path, monkeypatch, capsys):
    results = {"good": replay.check(0, 1), "bad": replay.check(float("nan"), 1)}
    monkeypatch.setattr(replay, "load_checks", lambda _: lambda _: results)
    assert replay.main(["audio", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["bad"] == {
        "error": "nan",
        "tolerance": 1,
        "ok": False,
    }


def test_the_family_must_be_known(tmp_path):
    with pytest.raises(SystemExit):
        replay.main(["video", str(tmp_path)])
