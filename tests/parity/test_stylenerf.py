"""Our StyleNeRF equals the recordings of the original (spec/stylenerf.md section 5)."""

import pytest

from tests.parity.stylenerf_checks import checks


@pytest.mark.parametrize(
    "name", ["eg3d64", "ffhq64", "ffhq64dense", "nfs64", "nfs64dense", "units"]
)
def test_recordings(shared_dir, name):
    found = checks(shared_dir / "parity/stylenerf" / name)
    assert found
    assert {k: v for k, v in found.items() if not v["ok"]} == {}
