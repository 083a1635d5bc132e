"""TAEF2: its published weights on real frames, files that are not its own, and its layers beside PyTorch's."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode
from sora_jax.evaluation.reconstruction import psnr_db
from sora_jax.models.codec import Codec, apply, load_codec, to_float
from sora_jax.models.taef import NO_NOISE
from sora_jax.models.taef_files import FILES, load_taef
from sora_jax.models.torch_files import read_tensors

WIDTH, CHANNELS = 64, 32


@pytest.fixture(scope="module")
def published(shared_data) -> Codec:
    return load_taef(shared_data / "weights")


@pytest.fixture(scope="module")
def frames(shared_data) -> np.ndarray:
    """Three frames of a real clip, 48x64."""
    path = sorted((shared_data / "clips" / "droid").glob("*.mp4"))[5]
    return decode(path)[0][None, :3, 60:108, 100:164]


def test_real_frames_come_back_and_survive_the_export(published, frames, tmp_path):
    latents = published.encode(frames)
    assert latents.shape == (1, 3, 6, 8, CHANNELS) and 0.3 < latents.std() < 3
    decoded = published.decode(latents)
    assert psnr_db(frames[0], decoded[0]) > 30
    published.save(tmp_path)
    loaded = load_codec(tmp_path)
    assert loaded.fingerprint == published.fingerprint
    np.testing.assert_array_equal(loaded.decode(latents), decoded)


def test_frames_are_coded_one_by_one(published, frames):
    together = published.posterior(frames)
    alone = np.concatenate([published.encode(frames[:, i : i + 1]) for i in range(3)], axis=1)
    np.testing.assert_allclose(together.mean, alone, atol=1e-4)
    assert (together.log_variance == NO_NOISE).all()


@pytest.mark.parametrize(("missing", "says"), [("encoder", "lacks taef2_encoder.pth"), ("decoder", "lacks taef2_dec")])
def test_a_missing_file_is_named(shared_data, tmp_path, missing, says):
    (kept,) = (name for side, name in FILES.items() if side != missing)
    shutil.copy(shared_data / "weights" / kept, tmp_path)
    with pytest.raises(UserError, match=says):
        load_taef(tmp_path)


def test_files_that_are_not_its_own_are_errors(shared_data, tmp_path):
    for name in FILES.values():
        shutil.copy(shared_data / "weights" / FILES["encoder"], tmp_path / name)
    with pytest.raises(UserError, match="no TAEF2"):
        load_taef(tmp_path)
    for name in FILES.values():
        shutil.copy(shared_data / "weights" / FILES["decoder"], tmp_path / name)
    with pytest.raises(UserError, match="lacks 43 tensors"):
        load_taef(tmp_path)


@pytest.mark.torch
def test_every_number_is_that_of_the_published_layers_in_pytorch(published, shared_data, frames):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, pools: bool = False):
            super().__init__()
            convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
            self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
            ends = (nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False), nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False))
            self.pool = nn.Sequential(ends[0], nn.GroupNorm(4, 4 * WIDTH), nn.ReLU(), ends[1]) if pools else None

        def forward(self, x):
            x = x if self.pool is None else x + self.pool(x)
            return torch.relu(self.conv(x) + x)

    class Squash(nn.Module):
        def forward(self, x):
            return 3 * torch.tanh(x / 3)

    def conv(shape, **options):
        return nn.Conv2d(*shape, 3, padding=1, **options)

    square = (WIDTH, WIDTH)
    down = [[conv(square, stride=2, bias=False), *(Block(scale == 2) for _ in range(3))] for scale in range(3)]
    up = [[*(Block(scale == 0) for _ in range(3)), nn.Upsample(scale_factor=2), conv(square, bias=False)]
          for scale in range(3)]  # fmt: skip
    sides = {
        "encoder": [conv((3, WIDTH)), Block(), *itertools.chain(*down), conv((WIDTH, CHANNELS))],
        "decoder": [Squash(), conv((CHANNELS, WIDTH)), nn.ReLU(), *itertools.chain(*up), Block(), conv((WIDTH, 3))],
    }
    nets = {}
    for side, layers in sides.items():
        nets[side] = nn.Sequential(*layers)
        tensors = read_tensors(shared_data / "weights" / FILES[side])
        nets[side].load_state_dict({name: torch.tensor(x.astype(np.float32)) for name, x in tensors.items()})
    with torch.no_grad():
        x = torch.tensor(frames[0].astype(np.float32) / 255).permute(0, 3, 1, 2)
        latents = nets["encoder"](x)
        pixels = nets["decoder"](latents)
    theirs, made = (y.permute(0, 2, 3, 1).numpy() for y in (latents, pixels))
    ours = published.encode(frames)
    np.testing.assert_allclose(ours[0], theirs, atol=1e-4)
    decoded, _ = jax.jit(lambda z: apply(published.config, published.params).decode(z, []))(theirs[None])
    np.testing.assert_allclose((np.asarray(decoded[0]) + 1) / 2, made, atol=1e-4)
    assert np.abs(made - (np.asarray(to_float(frames[0])) + 1) / 2).mean() < 0.05
