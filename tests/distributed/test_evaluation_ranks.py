"""An evaluation shared by ranks gives what one rank gives, to the last bit."""

import json

import numpy as np
import pytest
import torch.multiprocessing as mp

from tests import evaluation_ranks

pytestmark = pytest.mark.distributed


def test_two_ranks_equal_one(tmp_path):
    evaluation_ranks.run_rank(0, 1, tmp_path)
    mp.spawn(evaluation_ranks.run_rank, (2, tmp_path), nprocs=2)
    one, two = (json.loads((tmp_path / f"found-{n}.json").read_text()) for n in (1, 2))
    assert one["rows"] == {"i": list(range(7)), "h": [float(i) for i in range(7)]}
    assert {"eval/frechet_pooled", "eval/identity_views_pooled"} <= one["metrics"].keys()
    assert one["metrics"] == one["again"]
    assert np.asarray(one["orbit"]).shape == (5, 32, 32, 3)
    assert two == one
