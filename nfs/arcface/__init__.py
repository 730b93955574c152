"""ArcFace: backbones, margins, Partial-FC, RecordIO, verification and their training task.

Names are imported on first use, so `import nfs.arcface` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfs.arcface import margins, verification
    from nfs.arcface.backbones import build_backbone
    from nfs.arcface.distance import ArcfaceDistance
    from nfs.arcface.identity import ArcfaceIdentity
    from nfs.arcface.partial_fc import PartialFC
    from nfs.arcface.row_optimizers import RowAdamW, RowSGD

_HOMES = {
    "ArcfaceDistance": "distance",
    "ArcfaceIdentity": "identity",
    "PartialFC": "partial_fc",
    "RowAdamW": "row_optimizers",
    "RowSGD": "row_optimizers",
    "build_backbone": "backbones",
}
_MODULES = ("margins", "verification")

__all__ = [
    "ArcfaceDistance",
    "ArcfaceIdentity",
    "PartialFC",
    "RowAdamW",
    "RowSGD",
    "build_backbone",
    "margins",
    "verification",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
