"""Copies of training states on another storage, for machines that may not come back."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from nfs.artifacts import Store

METRICS_FILE = "metrics.json"
"""Written last: a state with it is whole."""


class StateMirror:
    """States `<uri>/<number>/` on any pyarrow filesystem, whole once their metrics are there.

    Args:
        uri: Folder of one run's states.

    Raises:
        InputError: If the URI is of a kind that pyarrow does not know.
    """

    def __init__(self, uri: str) -> None:
        self._store = Store(uri)

    def numbers(self) -> list[int]:
        """Return the numbers of whole states, oldest first.

        Raises:
            InputError: If the storage cannot be reached.
        """
        files = self._store.list(recursive=True)
        return sorted(int(f.split("/")[0]) for f in files if f.endswith(f"/{METRICS_FILE}"))

    def put(self, number: int, folder: Path, keep: int) -> None:
        """Copy a state there, then remove all but the newest `keep`, torn ones too.

        Raises:
            InputError: If the storage cannot be written.
        """
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        for name in sorted(names, key=lambda n: n == METRICS_FILE):
            target = f"{number:06d}/{name}"
            with (folder / name).open("rb") as source, self._store.open_output(target) as stream:
                shutil.copyfileobj(source, stream, 1 << 22)
        oldest = self.numbers()[-keep:][0]
        for name in self._store.list_folders():
            if int(name) < oldest:
                self._store.delete(f"{name}/{METRICS_FILE}")
                self._store.delete_folder(name)

    def get(self, number: int, folder: Path) -> None:
        """Copy a state from there to a folder, which appears whole or not at all.

        Raises:
            ArtifactError: If the state is gone.
        """
        temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
        prefix = f"{number:06d}/"
        for file in self._store.list(prefix.rstrip("/"), recursive=True):
            target = temporary / file.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._store.open_input(file) as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 22)
        temporary.rename(folder)
