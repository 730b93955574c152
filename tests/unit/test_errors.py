import pickle

import pytest

from nfs.errors import ArtifactError, ClipError, ConfigError, InputError, NfsError, NonFiniteError


@pytest.mark.parametrize(
    "error",
    [
        NfsError("a"),
        ConfigError("b"),
        ClipError("no_face", "none in 20 frames"),
        NonFiniteError("loss/g", float("inf"), "samples_seen=3"),
    ],
)
def test_errors_travel_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_exit_codes():
    assert NfsError.exit_code == 1
    assert {e.exit_code for e in (InputError, ConfigError, ArtifactError)} == {2}
