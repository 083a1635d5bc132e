"""Tensors of PyTorch files, read without unpickling: a pickle is a program, and a downloaded one is a stranger's.

A `.pth` file holds a pickle that says which tensors there are, and their numbers beside it: as a zip archive (PyTorch
1.6 and newer) or as one stream (older). The opcodes of that pickle are walked here by a stack machine that knows plain
values, containers, and four names: an ordered dict, a tensor, a parameter, and a storage of numbers. Nothing is
imported and nothing is called; any other opcode or name is an error.

A TorchScript file is such an archive whose pickle describes a tree of modules, with their code as text beside it. The
modules are taken as named collections of attributes, whatever their class; the code is not looked at.
"""

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from data_pipeline.errors import UserError, from_os_error

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
NESTED = ("model", "module")
"""Where training programs put the state dict, within what else they save."""
STREAM_MAGIC = 0x1950A86A20F9469CFC6C

VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
SCRIPTED = "__torch__"
"""Where the classes of a TorchScript file live."""
SCRIPTED_CALLS = {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")} | {
    "torch.jit._pickle restore_type_tag"
}
"""What gives back its first argument."""
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(NamedTuple):
    """What the pickle refers to by name; never looked up."""

    name: str


class _Storage(NamedTuple):
    """Numbers that lie beside the pickle."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module(NamedTuple):
    """An object of a TorchScript file."""

    attributes: dict[str, Any]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, also where it lies under "model" or "module".

    Raises UserError for a file that is missing or holds anything else.
    """
    return _read(path, scripted=False)


def read_scripted(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a TorchScript file, named by their modules as in a state dict (`layers.conv.weight`).

    Raises UserError for a file that is missing, or holds no modules with tensors.
    """
    return _read(path, scripted=True)


def _read(path: Path, scripted: bool) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                return _read_archive(file, scripted)
            if scripted:
                raise ValueError("it is no zip archive")
            file.seek(0)
            return _read_stream(file)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, zipfile.BadZipFile) as error:
        what, remedy = ("TorchScript file", "") if scripted else ("PyTorch file", ", or save a plain state dict")
        raise UserError(f"{path} is no {what} of named tensors ({error}); download it again{remedy}") from error


def _read_archive(file: io.BufferedIOBase, scripted: bool) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        (root,) = (n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("data.pkl"))
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        tensors, storages = _state_dict(io.BytesIO(archive.read(f"{root}data.pkl")), scripted)
        numbers = {}
        for key, storage in storages.items():
            about = archive.getinfo(f"{root}data/{key}")
            size = about.file_size
            if about.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"storage {key} is compressed, which PyTorch's never are")
            if size != storage.length * storage.dtype.itemsize:
                raise ValueError(f"storage {key} has {size} bytes, not {storage.length * storage.dtype.itemsize}")
            numbers[key] = np.frombuffer(archive.read(f"{root}data/{key}"), storage.dtype)
    return {name: _view(tensor, numbers) for name, tensor in tensors.items()}


def _read_stream(file: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Three pickles of preamble, the state dict's, one with the storages' keys; then each storage after its length."""
    if _run(file, {}) != STREAM_MAGIC:
        raise ValueError("it begins as neither of PyTorch's formats")
    for _ in ("protocol", "sizes of C types"):
        _run(file, {})
    tensors, storages = _state_dict(file)
    numbers = {}
    for key in _run(file, {}):
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        data = file.read(storage.length * storage.dtype.itemsize)
        if length != storage.length or len(data) != length * storage.dtype.itemsize:
            raise ValueError(f"storage {key} is cut short: {len(data)} bytes of {length} numbers")
        numbers[key] = np.frombuffer(data, storage.dtype)
    return {name: _view(tensor, numbers) for name, tensor in tensors.items()}


def _state_dict(pickled: io.BufferedIOBase, scripted: bool = False) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    storages: dict[str, _Storage] = {}
    found = _run(pickled, storages, scripted)
    if isinstance(found, _Module):
        found = dict(_attributes(found, ""))
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dict of tensors")
    within = [found[name] for name in NESTED if isinstance(found.get(name), dict)]
    found = within[0] if within else found
    tensors = {name: value for name, value in found.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise ValueError("its dict holds no tensors")
    return tensors, storages


def _attributes(module: _Module, prefix: str) -> Iterator[tuple[str, Any]]:
    """(full name, value) of a module's attributes and of those of the modules in it."""
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _attributes(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _view(tensor: _Tensor, numbers: dict[str, np.ndarray]) -> np.ndarray:
    """The tensor's own copy of its numbers. Raises ValueError where it reaches outside of its storage."""
    storage, steps = numbers[tensor.storage.key], list(zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"a tensor has a negative offset, size or stride: {tensor}")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, storage.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if last >= len(storage):
        raise ValueError(f"a tensor ends at number {last + 1} of a storage of {len(storage)}")
    if math.prod(tensor.shape) > len(storage):  # strides of 0 would make any size of a few bytes
        raise ValueError(f"a tensor of shape {tensor.shape} repeats a storage of {len(storage)} numbers")
    strides = [stride * storage.itemsize for _, stride in steps]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides).copy()


def _run(pickled: io.BufferedIOBase, storages: dict[str, _Storage], scripted: bool = False) -> Any:
    """The value that one pickle describes; the storages that its tensors name are added to `storages`.

    Only where it is `scripted` may it describe modules.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "NEWOBJ" and scripted:
            _, named = stack.pop(), stack.pop()
            stack.append(_module(named))
        elif name == "BUILD" and isinstance(stack[-2], _Module):
            attributes = stack.pop()
            stack[-1].attributes.update(attributes)
        elif name == "REDUCE" and scripted and stack[-2].name in SCRIPTED_CALLS:
            arguments = stack.pop()
            stack[-1] = arguments[0]
        elif name not in ("PROTO", "FRAME"):
            _combine(name, stack, marks, storages)
    raise ValueError("its pickle does not end")


def _combine(name: str, stack: list[Any], marks: list[int], storages: dict[str, _Storage]) -> None:
    """One opcode that takes values off the stack."""
    if name in TUPLES:
        stack.append(tuple(_take(stack, len(stack) - TUPLES[name])))
    elif name == "TUPLE":
        stack.append(tuple(_take(stack, marks.pop())))
    elif name in ("SETITEM", "SETITEMS"):
        items = _take(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
        stack[-1].update(_pairs(items))
    elif name in ("APPEND", "APPENDS"):
        items = _take(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
        stack[-1].extend(items)
    elif name == "BUILD":
        stack.pop()  # attributes of the dict, such as PyTorch's versions of its modules
    elif name == "BINPERSID":
        storage = _storage(*stack.pop()[:5])
        stack.append(storages.setdefault(storage.key, storage))
    elif name == "REDUCE":
        arguments, named = stack.pop(), stack.pop()
        stack.append(_construct(named, arguments))
    else:
        raise ValueError(f"its pickle asks for {name}, which tensors do not need")


def _module(named: _Name) -> _Module:
    if re.split(r"[. ]", named.name)[0] != SCRIPTED:
        raise ValueError(f"its pickle makes a {named.name.replace(' ', '.')}, which is no module of TorchScript")
    return _Module({})


def _take(stack: list[Any], start: int) -> list[Any]:
    taken = stack[start:]
    del stack[start:]
    return taken


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _storage(kind: str, of: _Name, key: str, place: str, length: int) -> _Storage:
    module, _, name = of.name.partition(" ")
    if kind != "storage" or module != "torch" or name not in STORAGES:
        raise ValueError(f"its pickle refers to {kind} {of.name}, which is no storage of numbers")
    return _Storage(key, STORAGES[name], length)


def _construct(named: _Name, arguments: tuple[Any, ...]) -> Any:
    """What calling one of three known names would give."""
    if named.name == "collections OrderedDict":
        return dict(*arguments)
    if named.name == "torch._utils _rebuild_tensor_v2":
        return _Tensor(*arguments[:4])
    if named.name == "torch._utils _rebuild_parameter":
        return arguments[0]
    raise ValueError(f"its pickle calls {named.name.replace(' ', '.')}, which tensors do not need")
