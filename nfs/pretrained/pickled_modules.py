"""Tensors and options out of a module tree that was read as data.

The tree comes from `read_pickle`: `PersistentObject` and `Record` nodes in place of modules,
OmegaConf nodes as records with their original state.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from nfs.errors import InputError
from nfs.pretrained.pickle_reader import PersistentObject, Record

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_CONTAINERS = ("DictConfig", "ListConfig")
_DEEP = 64


def state_of(node: object, what: str) -> dict[str, Any]:
    """Return the attributes of a module or plain object.

    Raises:
        InputError: If it is neither; `what` names it.
    """
    if isinstance(node, PersistentObject | Record) and isinstance(node.state, dict):
        return node.state
    raise InputError(f"{what} is not a module but a {type(node).__name__}")


def child(node: object, name: str) -> object:
    """Return the submodule `name`, or None."""
    return (state_of(node, name).get("_modules") or {}).get(name)


def module_tensors(module: object, what: str) -> dict[str, Tensor]:
    """Return parameters and persistent buffers under their state-dict names.

    Raises:
        InputError: If `module` is not a module; `what` names it.
    """
    return dict(_tensors(module, what, "", 0))


def _tensors(node: object, what: str, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    state = state_of(node, f"{what}.{prefix}".rstrip("."))
    if depth > _DEEP:
        raise InputError(f"{what}: modules are nested more than {_DEEP} deep")
    skipped = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if value is None or (group == "_buffers" and name in skipped):
                continue
            if not isinstance(value, Tensor):
                raise InputError(f"{what}: {prefix}{name} is not a tensor")
            yield f"{prefix}{name}", value
    for name, value in (state.get("_modules") or {}).items():
        if value is not None:
            yield from _tensors(value, what, f"{prefix}{name}.", depth + 1)


def plain(node: object) -> Any:
    """Return options as dicts, lists and scalars.

    OmegaConf containers are unwrapped; `${a.b}` is looked up from their root node. Modules,
    tensors and references that lead nowhere are left out of dicts, and None elsewhere.

    Raises:
        InputError: If the options are nested without end.
    """
    value = _plain(node, 0)
    return None if value is _NOTHING else value


_NOTHING = object()


def _plain(node: object, depth: int) -> Any:
    if depth > _DEEP:
        raise InputError(f"options are nested more than {_DEEP} deep")
    if isinstance(node, Record):
        return _plain(_content(node), depth + 1)
    if isinstance(node, Mapping):
        values = {str(k): _plain(v, depth + 1) for k, v in node.items()}
        return {k: v for k, v in values.items() if v is not _NOTHING}
    if isinstance(node, list | tuple):
        items = [_plain(v, depth + 1) for v in node]
        return [None if v is _NOTHING else v for v in items]
    return node if node is None or isinstance(node, bool | int | float | str) else _NOTHING


def _content(node: Record) -> object:
    """Return what an OmegaConf node holds, or what it refers to."""
    state = node.state if isinstance(node.state, dict) else {}
    value = state.get("_content" if node.class_name in _CONTAINERS else "_val", _NOTHING)
    reference = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
    if reference is None:
        return value
    target: object = _root(node)
    for part in reference[1].split("."):
        held = target.state.get("_content") if isinstance(target, Record) else None
        if not isinstance(held, Mapping) or part not in held:
            return _NOTHING
        target = held[part]
    return target


def _root(node: Record) -> Record:
    for _ in range(_DEEP):
        parent = node.state.get("_parent") if isinstance(node.state, dict) else None
        if not isinstance(parent, Record):
            break
        node = parent
    return node
