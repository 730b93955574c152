"""Foreign pickles are read as data: nothing in them runs, and what is not known is named."""

import builtins
import os
import pickle
import struct
import subprocess
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from nfs.errors import InputError
from nfs.pretrained.pickle_reader import PersistentObject, read_pickle
from nfs.pretrained.pickled_modules import module_tensors, plain
from tests.pickles import Call, Foreign, foreign_module, write_pickle


@pytest.fixture
def trap(tmp_path):
    """A file that every hostile pickle here would write; it must not exist afterwards."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists()


def hostile_calls(trap):
    write = f"open({str(trap)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch {trap}"),
        "builtins.exec": Call(exec, write),
        "builtins.eval": Call(eval, write),
        "io.open": Call(builtins.open, str(trap), "w"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(trap)]),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {trap}"))),
        "torch.serialization.load": Call(torch.load, str(trap)),
        "builtins.getattr": Call(getattr, "os", "system"),
    }


NAMES = sorted(hostile_calls("x"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_name_is_refused_and_quoted(tmp_path, trap, name, protocol):
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G": hostile_calls(trap)[name]}, protocol=protocol))
    function = name.rpartition(".")[2]  # old protocols write Python 2 modules, e.g. __builtin__
    with pytest.raises(InputError, match=rf"names [\w.]+\.{function}, .*refused"):
        read_pickle(file)


def test_other_opcodes_that_import_are_refused_too(tmp_path, trap):
    command = f"touch {trap}".encode()
    programs = {
        "posix.system": b"(S'" + command + b"'\niposix\nsystem\n.",  # INST
        "os.system": b"(cos\nsystem\nS'" + command + b"'\no.",  # OBJ
        "nt.system": b"\x80\x04\x8c\x02nt\x8c\x06system\x93\x8c\x01x\x85R.",  # STACK_GLOBAL
    }
    for name, program in programs.items():
        (tmp_path / "x.pkl").write_bytes(program)
        with pytest.raises(InputError, match=f"names {name}"):
            read_pickle(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04\x82\x01.")  # EXT1
    with pytest.raises(InputError, match="not a snapshot"):
        read_pickle(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(b"Pweights\n.")  # PERSID
    with pytest.raises(InputError, match="reference to outside data weights"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_hostile_storage_is_refused_and_quoted(tmp_path, trap, zipped):
    inner = tmp_path / "inner"
    evil = Call(os.system, f"touch {trap}")
    torch.save(evil, inner, _use_new_zipfile_serialization=zipped)
    content = {"G": Call(torch.storage._load_from_bytes, inner.read_bytes())}
    with pytest.raises(InputError, match=r"posix\.system in a tensor storage"):
        read_pickle(write_pickle(tmp_path / "network.pkl", content))
    raw = Call(torch.storage._load_from_bytes, pickle.dumps(evil))
    with pytest.raises(InputError):
        read_pickle(write_pickle(tmp_path / "network.pkl", {"G": raw}))


def test_the_same_pickles_do_run_where_they_may(tmp_path):
    """Proves that the traps above are real."""
    for number, name in enumerate(("builtins.exec", "posix.system")):
        path = tmp_path / str(number)
        pickle.loads(pickle.dumps(hostile_calls(path)[name]))
        assert path.exists()


def test_source_text_is_not_executed(tmp_path, trap):
    source = f"open({str(trap)!r}, 'w').close()\nraise SystemExit"
    file = write_pickle(tmp_path / "x.pkl", {"G": foreign_module("Net", {}, source)})
    node = read_pickle(file)["G"]
    assert isinstance(node, PersistentObject)
    assert node.class_name == "Net"
    assert source not in repr(node)


def test_tables_cannot_be_changed_by_a_pickle(tmp_path):
    """BUILD with attributes on the stand-ins: refused, and the next file reads as before."""
    for module, name in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("omegaconf.nodes", "AnyNode"),
        ("collections", "OrderedDict"),
        ("builtins", "dict"),
        ("typing", "Any"),
    ):
        program = f"c{module}\n{name}\n(N(S'__call__'\nNdtb.".encode()
        (tmp_path / "x.pkl").write_bytes(program)
        with pytest.raises(InputError, match="not a snapshot"):
            read_pickle(tmp_path / "x.pkl")
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    file = write_pickle(tmp_path / "y.pkl", foreign_module("Net", weights))
    assert torch.equal(module_tensors(read_pickle(file), "y")["weight"], weights["weight"])


def test_tensors_of_every_layout_are_exact(tmp_path):
    base = torch.randn(4, 6)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "long": torch.arange(5),
        "flag": torch.tensor([True, False]),
    }
    file = write_pickle(tmp_path / "x.pkl", foreign_module("Net", tensors))
    read = module_tensors(read_pickle(file), "x")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
        assert read[name].is_contiguous()


def test_values_are_data(tmp_path):
    content = {
        "scalar": np.float64(0.25),
        "integer": np.int32(-3),
        "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "columns": np.asfortranarray(np.eye(3, dtype=np.float32)),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, b=[2]),
        "bag": {1, 2},
    }
    read = read_pickle(write_pickle(tmp_path / "x.pkl", content))
    assert (read["scalar"], read["integer"]) == (0.25, -3)
    assert np.array_equal(read["array"].value, content["array"])
    assert np.array_equal(read["columns"].value, content["columns"])
    assert read["ordered"] == {"a": 1}
    assert read["default"] == {"b": [2]}
    assert read["bag"] == {1, 2}


def test_plain_torch_modules_are_data_too(tmp_path):
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LeakyReLU(0.2))
    content = {
        "G": layers,
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
        "device": torch.device("cuda", 1),
    }
    read = read_pickle(write_pickle(tmp_path / "x.pkl", content))
    tensors = module_tensors(read["G"], "G")
    assert tensors.keys() == layers.state_dict().keys()
    assert torch.equal(tensors["0.weight"], layers[0].weight)
    assert (read["size"], read["dtype"], read["device"]) == ((2, 3), "torch.float32", "cuda:1")


@pytest.mark.parametrize(
    "content",
    [
        np.array([{}], dtype=object),
        Call(np.dtype, "O"),
        Call(np.dtype, "V8"),
        Foreign("Net", [1]),
        Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,), False, OrderedDict()),
        Call(torch._utils._rebuild_parameter, "x", True, OrderedDict()),
        Call(torch.storage._load_from_bytes, "text"),
    ],
)
def test_wrong_content_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="not a snapshot"):
        read_pickle(write_pickle(tmp_path / "x.pkl", content))


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, 5, 1), (2, 3, 1), (0, 2, 4), (-1, 2, 1)]
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, offset, size, stride):
    storage = torch.zeros(4)._typed_storage()
    call = Call(
        torch._utils._rebuild_tensor_v2, storage, offset, (size,), (stride,), False, OrderedDict()
    )
    with pytest.raises(InputError, match="beyond its 4 numbers"):
        read_pickle(write_pickle(tmp_path / "x.pkl", call))


def test_damaged_files_are_always_an_input_error(tmp_path):
    state = {"weight": torch.randn(3, 3), "a.bias": torch.randn(3)}
    file = write_pickle(tmp_path / "x.pkl", {"G": foreign_module("Net", state), "p": np.float32(1)})
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    broken = [data[:cut] for cut in range(0, len(data), 97)]
    for _ in range(300):
        copy = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            copy[place] = rng.integers(256)
        broken.append(bytes(copy))
    broken += [b"", b"PK\x03\x04", b"<html>", bytes(range(256)), struct.pack("<Q", 2**60)]
    refused = 0
    for part in broken:
        file.write_bytes(part)
        try:
            read_pickle(file)
        except InputError:
            refused += 1
    assert refused > len(broken) // 2
    with pytest.raises(InputError, match="no such"):
        read_pickle(tmp_path / "absent.pkl")


def test_options_follow_references_to_the_root(shared_dir):
    content = read_pickle(shared_dir / "parity/stylenerf/snapshots/network-snapshot-hydra.pkl")
    options = plain(content["D"].state["_init_kwargs"])
    assert options["epilogue_kwargs"] == {"mbstd_group_size": 8}
    assert "${" not in str(options)
    assert plain({"a": (1, None, 2.5), "b": torch.ones(1)}) == {"a": [1, None, 2.5]}


def test_endless_options_are_refused():
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(InputError, match="nested"):
        plain(loop)
