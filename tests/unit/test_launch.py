import io
import json
import subprocess
import sys
import time
import types
from contextlib import closing

import pytest
from pydantic import Field

from jobs import _launch
from jobs._bars import ProgressLines, open_bar
from nfs.artifacts import Store, write_manifest
from nfs.config.base import JobConfig
from nfs.errors import InputError


class ToyConfig(JobConfig):
    clips: str = "none"
    size: int = Field(3, gt=0)


@pytest.fixture
def toy_job(monkeypatch):
    module = types.ModuleType("jobs.toy_job")
    module.calls = []
    module.INCREMENTAL = True

    def run(config, job):
        module.calls.append(job.resumed)
        if config.size == 13:
            raise InputError("clips: thirteen is bad luck; use 12")
        return {"metrics": {"toy/size": config.size}, "artifacts": {}}

    module.run = run
    monkeypatch.setitem(sys.modules, "jobs.toy_job", module)
    monkeypatch.setitem(sys.modules, "toy_schema", types.SimpleNamespace(ToyConfig=ToyConfig))
    return module


def call(tmp_path, *argv, size=3):
    file = tmp_path / "toy.yaml"
    file.write_text(f"size: {size}\nstorage: {tmp_path}/runs\ntracking: {{kind: jsonl}}\n")
    return _launch.run_command("toy_job", "toy_schema:ToyConfig", [str(file), *argv])


def test_result_file_and_exit_code(tmp_path, toy_job, capsys):
    assert call(tmp_path) == 0
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["metrics"] == {"toy/size": 3}
    assert "toy_job: done" in capsys.readouterr().out


def test_same_command_is_the_same_run(tmp_path, toy_job):
    call(tmp_path)
    call(tmp_path)
    call(tmp_path, "size=4")
    assert toy_job.calls == [False, True, False]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_launch_settings_do_not_change_the_run(tmp_path, toy_job):
    call(tmp_path)
    call(tmp_path, "launch.num_workers=2")
    assert toy_job.calls == [False, True]


def test_run_name_of_other_settings_is_refused(tmp_path, toy_job, capsys):
    call(tmp_path, "--run-name", "mine")
    assert call(tmp_path, "size=5", "--run-name", "mine") == 2
    assert "other settings (size: 3 -> 5)" in capsys.readouterr().err


def test_resume_uses_the_saved_configuration(tmp_path, toy_job):
    call(tmp_path, "size=7", "--run-name", "mine")
    argv = ["--resume", "mine", f"storage={tmp_path}/runs"]
    assert _launch.run_command("toy_job", "toy_schema:ToyConfig", argv) == 0
    assert toy_job.calls == [False, True]


def test_dry_run_prints_and_runs_nothing(tmp_path, toy_job, capsys):
    assert call(tmp_path, "--dry-run", "size=9") == 0
    assert "size: 9" in capsys.readouterr().out
    assert toy_job.calls == []


def test_bad_input_is_one_line_and_exit_2(tmp_path, toy_job, capsys):
    assert call(tmp_path, "size=13") == 2
    assert capsys.readouterr().err == "error: clips: thirteen is bad luck; use 12\n"


def test_unknown_key_exits_2(tmp_path, toy_job, capsys):
    assert call(tmp_path, "sizzle=1") == 2
    assert "unknown key 'sizzle'" in capsys.readouterr().err


def test_unwritable_storage_exits_2(tmp_path, toy_job, capsys):
    (tmp_path / "file").write_text("")
    assert call(tmp_path, f"storage={tmp_path}/file/runs") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_two_drivers_never_share_a_run(tmp_path, toy_job):
    call(tmp_path, "--run-name", "mine")
    lock = tmp_path / "runs" / "mine" / ".lock"
    code = (
        f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print(1, flush=True); time.sleep(30)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        assert call(tmp_path, "--run-name", "mine") == 2
    finally:
        holder.kill()
        holder.wait()


def test_flags_are_frozen(repository):
    """The flag set of every job is part of the contract (architecture.md)."""
    parser_text = _launch._parse.__code__.co_consts
    flags = sorted(c for c in parser_text if isinstance(c, str) and c.startswith("--"))
    assert flags == ["--dry-run", "--resume", "--run-name"]


def test_help_is_fast_and_light(repository):
    start = time.monotonic()
    code = (
        "import sys; sys.argv=['x','--help']\n"
        "import atexit; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "from jobs._launch import job_main\n"
        "job_main('preprocess', 'nfs.config.preprocess:PreprocessConfig')"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert out.returncode == 0
    assert out.stderr == "False"
    assert time.monotonic() - start < 20


def test_finished_run_of_a_training_job_is_not_repeated(tmp_path, toy_job, capsys):
    toy_job.INCREMENTAL = False
    call(tmp_path)
    assert call(tmp_path) == 0
    assert toy_job.calls == [False]
    assert "finished before" in capsys.readouterr().out


def test_changed_input_is_refused(tmp_path, toy_job, capsys):
    toy_job.INCREMENTAL = False
    clips = tmp_path / "clips"
    Store(clips).write_bytes("a", b"1")
    write_manifest(str(clips), kind="clips", config={})
    call(tmp_path, f"clips={clips}")
    Store(clips).write_bytes("a", b"2")
    write_manifest(str(clips), kind="clips", config={})
    assert call(tmp_path, f"clips={clips}") == 2
    assert "clips changed since this run began" in capsys.readouterr().err


def test_warnings_of_remote_workers_are_shown(tmp_path, monkeypatch, toy_job, caplog):
    from nfs.runtime.progress import report_warning

    def run(config, job):
        report_warning(job.directory, "the geometry is flat")
        return {"metrics": {}, "artifacts": {}}

    monkeypatch.setattr(toy_job, "run", run)
    tree = {"storage": str(tmp_path), "tracking": {"kind": "null"}}
    for kind, count in (("ray", 1), ("local", 0), ("ray", 1)):
        caplog.clear()
        config = ToyConfig.from_tree(tree | {"launch": {"kind": kind}})
        _launch.launch("toy_job", config, run_name="same", quiet=True)
        assert caplog.text.count("the geometry is flat") == count


def test_ranks_above_zero_follow_under_torchrun(tmp_path, toy_job, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    with _launch.run_lock(tmp_path / "runs" / "both"):  # rank 0 holds the run
        assert call(tmp_path, "--run-name", "both") == 0
    assert toy_job.calls == [False]
    assert [p.name for p in (tmp_path / "runs" / "both").iterdir()] == [".lock"]
    assert capsys.readouterr().out == ""
    (tmp_path / "runs" / "both" / "result.json").write_text('{"artifacts": {}, "seconds": 1}')
    assert call(tmp_path, "--run-name", "both") == 0
    assert len(toy_job.calls) == 1, "a finished run was worked on again"
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "runs" / "both" / "result.json").unlink()
    assert call(tmp_path, "--run-name", "both") == 0
    assert "toy_job: done" in capsys.readouterr().out


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_a_log_gets_few_plain_lines():
    clock, stream = Clock(), io.StringIO()
    # a resumed run: 6400 samples are done, then 32 in a second
    bar = ProgressLines("train", 12_800, "samples", stream=stream, clock=clock)
    bar.n = 6400
    bar.refresh()
    for _ in range(100):
        clock.now_s += 1.0
        bar.n += 32
        bar.refresh()
    bar.close()
    bar.close()
    assert stream.getvalue().splitlines() == [
        "train: 7360 of 12800 samples, 57 %, 32 samples/s, 3 min left",
        "train: 8320 of 12800 samples, 65 %, 32 samples/s, 2 min left",
        "train: 9280 of 12800 samples, 72 %, 32 samples/s, 2 min left",
        "train: 9600 of 12800 samples, 75 %, 32 samples/s, 2 min left",
    ]


@pytest.mark.parametrize(
    ("left_s", "text"), [(45, "45 s"), (100, "2 min"), (3_000, "50 min"), (7_500, "2 h 05 min")]
)
def test_the_time_that_is_left(left_s, text):
    clock, stream = Clock(), io.StringIO()
    bar = ProgressLines("toy", 30 + left_s, "clips", stream=stream, clock=clock)
    for _ in range(31):
        clock.now_s += 1.0
        bar.n += 1
        bar.refresh()
    assert stream.getvalue().endswith(f", 1 clips/s, {text} left\n")


def test_bars_are_for_terminals(monkeypatch, capsys):
    with closing(open_bar("toy", 2, "clips")) as bar:
        bar.update(2)
    assert capsys.readouterr().err == "toy: 2 of 2 clips, 100 %\n"
    with closing(open_bar("toy", 2, "clips", quiet=True)) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with closing(open_bar("toy", 9, "clips", initial=7)) as bar:
        bar.refresh()
    shown = capsys.readouterr().err
    assert "\r" in shown
    assert "7/9" in shown


def test_progress_of_workers_is_shown_as_a_line(tmp_path, toy_job, capsys, monkeypatch):
    from nfs.runtime.progress import report_progress

    def run(config, job):
        report_progress(job.directory, 5, 10, "samples")
        time.sleep(1.3)
        return {}

    toy_job.run = run
    assert call(tmp_path) == 0
    assert capsys.readouterr().err.splitlines() == ["toy_job: 5 of 10 samples, 50 %"]
