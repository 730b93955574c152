"""Configuration keys named in docs exist."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from nfs.config.fit_3dmm import Fit3dmmConfig
from nfs.config.preprocess import PreprocessConfig
from nfs.config.train_recon import TrainReconConfig
from tests.conftest import REPOSITORY

ROOTS = (TrainReconConfig, Fit3dmmConfig, PreprocessConfig)
NO_KEY = re.compile(r"jobs\.|nfs\.|--|.*\.(py|md|yaml|mat|pth|pt|npy|npz|obj|csv)$")
KEY = re.compile(r"\.?[a-z]\w*(\.[a-z]\w*)*(\.\*)?")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Models in a type, through unions, optional and annotated types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_in(part)


def exists(model: type[BaseModel], key: str) -> bool:
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return False
    if rest in ("", "*"):
        return True
    return any(exists(m, rest) for m in models_in(model.model_fields[name].annotation))


def keys_in(text: str) -> Iterator[str]:
    """Keys between backticks, without values; `.b` after `a.c` is `a.b`."""
    parent = ""
    for token in re.findall(r"`([^`]+)`", text):
        found = KEY.match(token)
        if NO_KEY.match(token) or found is None or not re.match(r"$|=|: ", token[found.end() :]):
            continue
        key = found.group()
        key = parent + key if key[0] == "." else key
        parent = key.rpartition(".")[0]
        yield key


def cells(page: str, column: int, heading: str) -> Iterator[str]:
    """Cells of a column of the tables whose heading row has `heading` in it."""
    wanted = False
    for line in (REPOSITORY / "docs" / page).read_text().splitlines():
        if not line.startswith("|"):
            wanted = False
        elif wanted or line.split("|")[column].strip() == heading:
            if wanted and not line.startswith("|--"):
                yield line.split("|")[column]
            wanted = True


@pytest.mark.parametrize(
    ("page", "column", "heading", "least"),
    [("recon.md", 2, "now", 45), ("fitting.md", 2, "setting", 4)],
)
def test_keys_in_tables(page, column, heading, least):
    found = [key for cell in cells(page, column, heading) for key in keys_in(cell)]
    assert len(found) >= least
    unknown = [key for key in found if not any(exists(root, key) for root in ROOTS)]
    assert unknown == []


@pytest.mark.parametrize("page", ["recon.md", "fitting.md", "preprocessing.md"])
def test_dotted_keys_in_the_text(page):
    text = (REPOSITORY / "docs" / page).read_text()
    sections = {name for root in ROOTS for name in root.model_fields}
    found = [k for line in text.splitlines() for k in keys_in(line)]
    found = [key for key in found if "." in key and key.split(".")[0] in sections]
    assert found
    unknown = [key for key in found if not any(exists(root, key) for root in ROOTS)]
    assert unknown == []


def test_a_wrong_key_is_noticed():
    line = "`fit.photometric.rigid_steps`, `.learning_rat`, `fit.landmarks.*`, `init: {kind: a}`"
    keys = list(keys_in(line))
    assert [key for key in keys if not exists(Fit3dmmConfig, key)] == [
        "fit.photometric.learning_rat",
        "init",
    ]
