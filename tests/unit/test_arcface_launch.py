"""The launch examples of ArcFace start what they say, for any number of GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for Ray, which needs the machines: it runs the command that it gets.
LAUNCHER = """#!/bin/sh
case "$*" in
    *" -- "*) while [ "$1" != -- ]; do shift; done; shift ;;
esac
exec "$@"
"""


def start(script, *arguments, **environment):
    return subprocess.run(
        [str(ROOT / "cluster" / script), *arguments, "--dry-run"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_one_gpu():
    done = start("arcface_single_gpu.sh", "/faces", NFS_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "path: /faces" in done.stdout
    assert "num_workers: 1" in done.stdout
    assert "num_classes: 93431" in done.stdout


def test_several_nodes_go_through_a_job_submission(tmp_path):
    ray = tmp_path / "ray"
    ray.write_text(LAUNCHER)
    ray.chmod(0o755)
    arguments = ("arcface_multi_node.sh", "/faces", "/runs", "launch.num_workers=32")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = start(*arguments, NFS_PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert "storage: /runs" in done.stdout
    assert "num_workers: 32" in done.stdout
    assert "batch_size: 4096" in done.stdout


@pytest.mark.parametrize("gpus", [2, 8])
def test_all_gpus_of_a_machine(tmp_path, gpus):
    python = tmp_path / "python"
    # torchrun's own options end at the second -m.
    python.write_text(
        f'#!/bin/sh\nshift 2\nwhile [ "$1" != -m ]; do shift; done\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = start("arcface_multi_gpu.sh", "/faces", NFS_PYTHON=str(python), NUM_GPUS=str(gpus))
    assert done.returncode == 0, done.stderr
    assert f"num_workers: {gpus}" in done.stdout
    assert "batch_size: 1024" in done.stdout


def test_data_is_asked_for():
    done = subprocess.run(
        [str(ROOT / "cluster" / "arcface_single_gpu.sh")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "train.rec" in done.stderr
