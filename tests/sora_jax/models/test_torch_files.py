"""Tensors of PyTorch files are read without unpickling: programs, torn files and tensors out of bounds are errors."""

import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models.torch_files import read_tensors


class Program:
    """What unpickling would call."""

    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def archive(path, pickled: bytes, numbers: bytes = b"", byteorder: bytes = b"little") -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", pickled)
        file.writestr("net/byteorder", byteorder)
        file.writestr("net/data/0", numbers)


def tensor_pickle(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], length: int = 6) -> bytes:
    """A state dict with one float32 tensor `w`, as torch.save writes it, by hand."""

    def text(s: str) -> bytes:
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def numbers(values) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", length) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset)
    tensor += numbers(shape) + numbers(strides) + b"\x89NtR"
    return b"\x80\x02}(" + text("w") + tensor + b"u."


def test_a_tensor_is_a_view_of_its_storage(tmp_path):
    values = np.arange(6, dtype="<f4")
    archive(tmp_path / "w.pth", tensor_pickle(1, (2, 2), (1, 3)), values.tobytes())
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.pth")["w"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ((3, (2, 2), (1, 3)), "ends at number 8 of a storage of 6"),
        ((0, (2,), (-1,)), "negative"),
        ((0, (3, 3), (0, 0)), r"shape \(3, 3\) repeats a storage of 6"),
    ],
)
def test_a_tensor_out_of_its_storage_is_an_error(tmp_path, where, says):
    archive(tmp_path / "w.pth", tensor_pickle(*where), np.zeros(6, "<f4").tobytes())
    with pytest.raises(UserError, match=says):
        read_tensors(tmp_path / "w.pth")


def test_a_program_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "bad.pth", pickle.dumps({"w": Program()}, protocol=2))
    with pytest.raises(UserError, match=r"calls \w+\.mkdir"):
        read_tensors(tmp_path / "bad.pth")
    archive(tmp_path / "new.pth", pickle.dumps({"w": Program()}, protocol=4))
    with pytest.raises(UserError, match="STACK_GLOBAL"):
        read_tensors(tmp_path / "new.pth")
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_what_is_no_state_dict_is_an_error(tmp_path):
    cases = {
        "list": (pickle.dumps([1, 2], 2), b"", b"little", "holds a list"),
        "empty": (pickle.dumps({}, 2), b"", b"little", "no tensors"),
        "short": (tensor_pickle(0, (6,), (1,)), b"1234", b"little", "has 4 bytes, not 24"),
        "big": (tensor_pickle(0, (6,), (1,)), bytes(24), b"big", "big-endian"),
        "torn": (tensor_pickle(0, (6,), (1,))[:40], bytes(24), b"little", "no PyTorch file"),
    }
    for name, (pickled, numbers, order, says) in cases.items():
        archive(tmp_path / f"{name}.pth", pickled, numbers, order)
        with pytest.raises(UserError, match=says):
            read_tensors(tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="no PyTorch file"):
        read_tensors(tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"reading .*missing\.pth"):
        read_tensors(tmp_path / "missing.pth")


def test_published_files_of_both_formats(shared_data, tmp_path):
    folder = shared_data / "weights"
    heads = read_tensors(folder / "lpips_v0.1_alex_heads.pth")
    assert [x.shape for x in heads.values()] == [(1, n, 1, 1) for n in (64, 192, 384, 256, 256)]
    assert all(np.all(x >= 0) for x in heads.values())
    decoder = read_tensors(folder / "taef2_decoder.pth")
    assert all(np.all(np.isfinite(x.astype(np.float32))) for x in decoder.values()) and len(decoder) > 10
    torn = (folder / "lpips_v0.1_alex_heads.pth").read_bytes()[:-100]
    (tmp_path / "torn.pth").write_bytes(torn)
    with pytest.raises(UserError, match="cut short"):
        read_tensors(tmp_path / "torn.pth")


@pytest.mark.torch
@pytest.mark.parametrize("is_archive", [True, False])
def test_what_pytorch_saves_is_read(tmp_path, is_archive):
    import torch

    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    saved = {
        "plain": torch.randn(2, 3),
        "transposed": shared.T,
        "part": shared[1:, ::2],
        "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]),
    }
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=is_archive)
    found = read_tensors(tmp_path / "w.pth")
    assert found.keys() == saved.keys() and found["bfloat16"].dtype == ml_dtypes.bfloat16
    for name, tensor in saved.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.detach().double().numpy())
