"""Stage directories: manifest, Arrow tables, atomic per-unit files, verification, splits."""

from nfs.artifacts.manifest import Manifest, read_manifest, verify, write_manifest
from nfs.artifacts.store import Store
from nfs.artifacts.units import UnitReport, UnitStage, UnitWork

__all__ = [
    "Manifest",
    "Store",
    "UnitReport",
    "UnitStage",
    "UnitWork",
    "read_manifest",
    "verify",
    "write_manifest",
]
