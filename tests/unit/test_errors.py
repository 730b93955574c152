import pickle

import pytest

from nfs.errors import (
    ArtifactError,
    ClipError,
    ConfigError,
    InputError,
    NfsError,
    NonFiniteError,
    own_error,
)


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


class RunFailed(Exception):
    """As Ray reports the workers of a failed run."""

    def __init__(self, failures: dict[int, Exception]):
        super().__init__("worker 1 failed")
        self.worker_failures = failures


def test_own_errors_are_found_in_those_of_ray():
    wrapped = RuntimeError("worker died")
    wrapped.cause = ConfigError("batch_size")
    assert own_error(RunFailed({1: wrapped})) is wrapped.cause
    chained = OSError("full")
    chained.__cause__ = NonFiniteError("loss/g", float("nan"))
    assert own_error(chained) is chained.__cause__
    foreign = own_error(RunFailed({1: OSError("full")}))
    assert type(foreign) is NfsError
    assert str(foreign) == "the Ray run failed: worker 1 failed"


def test_exit_codes():
    assert NfsError.exit_code == 1
    assert {e.exit_code for e in (InputError, ConfigError, ArtifactError)} == {2}
