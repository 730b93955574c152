"""`ray job submit` against a local head with token authentication."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.media import cut_clips

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(300)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(repository, tmp_path):
    """A head node of its own; yields the environment that clients need."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    env |= {
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "NFS_RAY_PORT": str(free_port()),
        "NFS_RAY_DASHBOARD_PORT": str(port),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "NFS_PYTHON": sys.executable,
    }
    mark = f"nfs_test_{port}"
    command = ["bash", "cluster/start_head.sh", "--num-cpus=2", "--object-store-memory=150000000"]
    # The session's cluster has an agent on the default port.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--labels=test={mark}", f"--temp-dir=/tmp/{mark}"]
    out = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    exports = (line.removeprefix("export ") for line in out.stdout.splitlines())
    yield {**env, **dict(line.split("=", 1) for line in exports)}
    for pid in subprocess.run(["pgrep", "-f", mark], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def submit(repository, env, *arguments):
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    command = [ray, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=repository, env=env, capture_output=True, text=True, timeout=200
    )


def test_job_submit_with_a_token(head, repository, shared_dir, tmp_path):
    clips, storage = tmp_path / "clips", tmp_path / "runs"
    cut_clips(shared_dir / "data" / "clips" / "interview_512.mp4", clips, 2)
    job = ["jobs.preprocess", "jobs/configs/preprocess/smoke.yaml", f'inputs=["{clips}"]']
    job += ["tracking.kind=jsonl"]
    out = submit(repository, head, *job, f"storage={storage}")
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-1000:]
    (result,) = storage.glob("*/result.json")
    assert json.loads(result.read_text())["metrics"]["preprocess/clips_ok"] == 2

    relative = submit(repository, head, *job, "storage=runs")
    assert relative.returncode != 0
    assert "give an absolute path" in relative.stdout

    stranger = {k: v for k, v in head.items() if not k.startswith("RAY_AUTH")}
    stranger["HOME"] = str(tmp_path)
    refused = submit(repository, stranger, *job, f"storage={storage}")
    assert refused.returncode != 0
    assert "oken" in refused.stderr + refused.stdout
