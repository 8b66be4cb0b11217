"""Pickles that torch.load(weights_only=True) runs, and that a file of tensors never holds, end in a sentence."""

import collections
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from sae_runtime.bundle.torch_files import check_torch_file, load_torch_file
from sae_runtime.checkpoints.torch_file import read_torch

MANY = 1 << 41  # bytes; a file of 400 bytes asks for them
NUMBER = b"\x8a\x06" + MANY.to_bytes(6, "little")


def torch_file(path: Path, pickled: bytes, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        members = {"ae/data.pkl": pickled, "ae/version": b"3\n", "ae/byteorder": b"little", **more}
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def calling(module: str, name: str) -> bytes:
    """The pickle of {"a": module.name(MANY)}."""
    return b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{name}\n".encode() + NUMBER + b"\x85Rs."


def laughs(levels: int, names: int) -> bytes:
    """A dict whose values are all one dict, whose values are all one dict, and so on."""
    out = b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s"
    for level in range(1, levels):
        below = b"h" + bytes([level - 1])
        items = b"".join(b"X\x04\x00\x00\x00%04d" % name + below for name in range(names))
        out += b"}q" + bytes([level]) + b"(" + items + b"u"
    return out + b"."


def copies(kind: str) -> bytes:
    """One container of 20,000 parts, which 5,000 calls copy: GBs of a file of 300 KB."""
    named = {"OrderedDict": b"ccollections\nOrderedDict\nq\x01", "Size": b"ctorch\nSize\nq\x01"}
    call, name = {
        "list": (b"h\x01h\x00\x85R", "OrderedDict"),
        "size of a list": (b"h\x01h\x00\x85R", "Size"),
        "size": (b"h\x01h\x00\x85R", "Size"),
        "state": (b"h\x01)Rh\x00b", "OrderedDict"),
    }[kind]
    number = [b"M" + n.to_bytes(2, "little") for n in range(20_000)]
    pairs = {
        "list": b"](" + b"".join(n + b"N\x86" for n in number) + b"e",
        "size of a list": b"](" + b"".join(number) + b"e",
        "size": b"(" + b"".join(number) + b"t",
        "state": b"}(" + b"".join(b"X\x05\x00\x00\x00%05dN" % n for n in range(20_000)) + b"u",
    }[kind]
    return b"\x80\x02" + pairs + b"q\x00" + named[name] + b"](" + call * 5000 + b"e\x87."


def doubled(times: int) -> bytes:
    """A dict whose one name is a tuple of two tuples, which are one tuple of two tuples, and so on."""
    levels = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(times))
    return b"\x80\x02})" + levels + b"Ns."


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (copies("list"), "collections.OrderedDict of a list"),
        (copies("size of a list"), "torch.Size of a list"),
        (copies("size"), "more than 262,144 operations"),
        (copies("state"), "a state that several objects copy"),
        (doubled(45), "more than 262,144 operations"),
        (calling("__builtin__", "bytearray"), "not loaded .__builtin__.bytearray"),
        (calling("torch", "FloatStorage"), "not loaded .torch.FloatStorage"),
        (calling("torch.storage", "UntypedStorage"), "not loaded .torch.storage.UntypedStorage"),
        (calling("torch._utils", "_rebuild_sparse_tensor"), "not loaded .torch._utils._rebuild_sparse_tensor"),
        (pickle.dumps({"a": bytearray(9)}, 4), "the operation FRAME"),
        (b"\x80\x02}(" + b")" + b"\x85" * 100_000 + b"K\x01u.", "51 tuples inside one another"),
        (b"\x80\x02}X\x01\x00\x00\x00a](" + b"}" * 1_000_000 + b"es.", "more than 262,144 operations"),
        (b"\x80\x02}" + b"2" * 9 + b".", "the operation DUP"),
        (laughs(8, 100), "inside one another without end"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "inside one another without end"),
        (b"\x80\x02t.", "is damaged"),
        (b"", "is damaged"),
        (bytes(5 << 20), "its pickle has 5,242,880 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "pickle",
)
def test_a_pickle_that_takes_more_than_it_holds_is_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        read_torch(torch_file(tmp_path / "ae.pt", pickled))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB


def test_what_checkpoints_hold_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    shared = torch.ones(3, dtype=torch.bfloat16)
    state = {
        "state_dict": layer.state_dict(),  # an OrderedDict with an attribute
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "twice": [shared, shared],
        "settings": {"dtype": torch.float32, "size": torch.Size([2, 3]), "device": torch.device("cpu"), "k": 1 << 40},
        "bits": [torch.ones(2, dtype=torch.uint16), torch.ones(2).to(torch.float8_e4m3fn)],
        "other": {"dtype": torch.float8_e5m2},
        "ordered": collections.OrderedDict(a=None, b=(1.5, True, "text")),
    }
    torch.save(state, tmp_path / "ae.pt")
    check_torch_file(tmp_path / "ae.pt")
    loaded = load_torch_file(tmp_path / "ae.pt")
    assert loaded["settings"] == state["settings"] and loaded["ordered"] == state["ordered"]
    assert torch.equal(loaded["state_dict"]["weight"], layer.weight)
    assert [str(one.dtype) for one in loaded["bits"]] == ["torch.uint16", "torch.float8_e4m3fn"]
    assert loaded["other"] == state["other"]
    assert torch.equal(loaded["parameter"], torch.ones(2)) and torch.equal(loaded["twice"][1], shared)


def test_a_second_pickle_that_torch_could_take_instead_is_refused(tmp_path: Path) -> None:
    hostile, harmless = calling("__builtin__", "bytearray"), pickle.dumps({}, 2)
    for name, more in {"case": {"ae/DATA.PKL": hostile}, "folder": {"other/data.pkl": hostile}}.items():
        with pytest.raises(ValueError, match="is not a sound file of torch.save"):
            read_torch(torch_file(tmp_path / name, harmless, **more))
    path = torch_file(tmp_path / "ae.pt", harmless)
    whole = path.read_bytes()
    path.write_bytes(torch_file(tmp_path / "first.pt", hostile).read_bytes() + whole)
    with pytest.raises(ValueError, match="bytes stand before or behind it"):
        read_torch(path)
