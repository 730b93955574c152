"""A tracker of plain files in the run directory; needs no server and no mlflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nfs.tracking.protocol import Status, TrackerSpec


class JsonlTracker:
    """Writes `metrics.jsonl`, `params.json`, `tags.json`, `images/` and `files/`.

    Args:
        directory: Folder of the records, made if absent.
        run_id: Name of the run.
        copy_files: Whether `log_file` keeps a copy; off where the files lie in the run anyway.
    """

    def __init__(self, directory: str | Path, run_id: str, *, copy_files: bool = True):
        self.run_id = run_id
        self._copy_files = copy_files
        self._root = Path(directory)
        self._root.mkdir(parents=True, exist_ok=True)
        self._seen = {(r["step"], k) for r in self.read() for k in r["metrics"]}

    def spec(self) -> TrackerSpec:
        """Return a picklable description for `attach_tracker`."""
        kind = "jsonl" if self._copy_files else "jsonl-beside"
        return TrackerSpec(kind, self.run_id, "", str(self._root))

    def read(self) -> list[dict[str, Any]]:
        """Return the recorded rows `{"step": int, "metrics": {...}}` in order."""
        file = self._root / "metrics.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").splitlines()
        return [row for line in lines if (row := _parse(line)) is not None]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Merge into `params.json`."""
        self._merge("params.json", params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line; (step, key) pairs that are there already are left out."""
        fresh = {k: float(v) for k, v in metrics.items() if (step, k) not in self._seen}
        if not fresh:
            return
        self._seen.update((step, k) for k in fresh)
        with (self._root / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "metrics": fresh}) + "\n")

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """Write a PNG."""
        suffix = "" if step is None else f"-{step:09d}"
        file = self._root / "images" / f"{name}{suffix}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Copy a file or folder."""
        if not self._copy_files:
            return
        source, target = Path(path), self._root / "files" / folder
        target.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / source.name, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target / source.name)

    def log_text(self, text: str, name: str) -> None:
        """Write a text file."""
        file = self._root / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Merge into `tags.json`."""
        self._merge("tags.json", tags)

    def link(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Merge into `lineage.json`."""
        self._merge("lineage.json", {"inputs": dict(inputs), "outputs": dict(outputs)})

    def flush(self) -> None:
        """Every call writes through."""

    def finish(self, status: Status) -> None:
        """Record the final status."""
        self.set_tags({"status": status})

    def _merge(self, name: str, values: Mapping[str, Any]) -> None:
        file = self._root / name
        old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        text = json.dumps({**old, **values}, indent=1, sort_keys=True)
        temporary = file.with_name(f".{name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except json.JSONDecodeError:  # a line torn by a kill; its step is recorded again
        return None
