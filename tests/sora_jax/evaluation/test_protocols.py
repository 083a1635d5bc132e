"""Every preset is its published convention: pixels, frames and distance computed anew, by other means."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from data_pipeline.errors import UserError
from sora_jax.evaluation.frechet import frechet_distance, gaussian
from sora_jax.evaluation.protocols import PROTOCOLS, Protocol, Resize, choose_protocol, preprocess
from sora_jax.evaluation.resizing import torch_antialiased, torch_bilinear

HEIGHT, WIDTH = 21, 30


def weights(length: int, wanted: int, place, reach=None) -> np.ndarray:
    """A resize along one dim as a matrix: triangles around `place(i)`, of half width `reach`, at the edges cut off."""
    matrix = np.zeros((wanted, length))
    for i in range(wanted):
        if reach is None:
            low = int(place(i))
            part = place(i) - low
            matrix[i, min(low, length - 1)] += 1 - part
            matrix[i, min(low + 1, length - 1)] += part
        else:
            row = [max(0.0, 1 - abs(j + 0.5 - place(i)) / reach) for j in range(length)]
            matrix[i] = np.array(row) / np.sum(row)
    return matrix


def tf1(x: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        weights(n, m, lambda i, n=n, m=m: i * n / m) for n, m in zip(x.shape[:2], (height, width), strict=True)
    )
    return np.einsum("iy,yxc,jx->ijc", rows, x, columns, optimize=True)


def bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    places = [
        lambda i, n=n, m=m: max((i + 0.5) * n / m - 0.5, 0.0) for n, m in zip(x.shape[:2], (height, width), strict=True)
    ]
    rows, columns = (weights(n, m, p) for n, m, p in zip(x.shape[:2], (height, width), places, strict=True))
    return np.einsum("iy,yxc,jx->ijc", rows, x, columns, optimize=True)


def antialiased(x: np.ndarray, height: int, width: int) -> np.ndarray:
    found = [
        weights(n, m, lambda i, n=n, m=m: (i + 0.5) * n / m, max(n / m, 1.0))
        for n, m in zip(x.shape[:2], (height, width), strict=True)
    ]
    return np.einsum("iy,yxc,jx->ijc", found[0], x, found[1], optimize=True)


def bicubic(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keys' kernel with a = -1/2, as wide as its result's pixels where those are larger."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    found = []
    for length, wanted in zip(x.shape[:2], (height, width), strict=True):
        scale = length / wanted
        rows = [[kernel((j + 0.5 - (i + 0.5) * scale) / max(scale, 1.0)) for j in range(length)] for i in range(wanted)]
        found.append(np.array(rows) / np.sum(rows, 1, keepdims=True))
    return np.einsum("iy,yxc,jx->ijc", found[0], x, found[1], optimize=True)


def centre(resize, x: np.ndarray, side: int) -> np.ndarray:
    """The shorter side (here the height) to `side`, the other rounded up, and the middle of it."""
    width = int(np.ceil(x.shape[1] * side / x.shape[0]))
    left = (width - side) // 2
    return resize(x, side, width)[:, left : left + side]


def whole_levels(x: np.ndarray) -> np.ndarray:
    """What is left of levels after / 255 and * 255 in float32, cut off."""
    return np.trunc(x.astype(np.float32) / np.float32(255) * np.float32(255)).astype(np.float64)


EXPECTED = {
    "google": lambda x: 2 * tf1(x, 224, 224) / 255 - 1,
    "stylegan-v": lambda x: bilinear(x / 255 * 2 - 1, 224, 224),
    "common-metrics-styleganv": lambda x: (centre(bilinear, x / 255, 224) - 0.5) * 2,
    "common-metrics-videogpt": lambda x: (centre(bilinear, whole_levels(x) / 255, 224) - 0.5) * 2,
    "cd-fvd": lambda x: 2 * bilinear(np.trunc(centre(antialiased, x, 256)), 224, 224) / 255 - 1,
    "cd-fvd-videomae": lambda x: bilinear(np.trunc(centre(antialiased, x, 256)) / 255, 224, 224),
    "pytorch-fid": lambda x: 2 * bilinear(x / 255, 299, 299) - 1,
    "clean-fid": lambda x: (np.clip(bicubic(x, 299, 299), 0, 255) - 128) / 128,
    "clean-fid-legacy-tf": lambda x: (tf1(x, 299, 299) - 128) / 128,
    "torch-fidelity": lambda x: (tf1(x, 299, 299) - 128) / 128,
}
OTHER_FRAMES = {"stylegan-v-128f": (128, 1), "stylegan-v-128f-subsample8f": (16, 8)}
DDOF = dict.fromkeys(("stylegan-v", "stylegan-v-128f", "stylegan-v-128f-subsample8f", "cd-fvd", "cd-fvd-videomae"), 0)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Noise, with a corner of nearly 0 and 255 that cubic filters overshoot."""
    x = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    x[:8, :5], x[:8, 5:12] = x[:8, :5] // 64, 252 + x[:8, 5:12] // 64
    return x


def test_every_preset_is_looked_at():
    of_no_publication = {"synth-fd", "synth-fvd"}
    assert set(PROTOCOLS) == set(EXPECTED) | set(OTHER_FRAMES) | of_no_publication


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_pixels(name, picture):
    protocol = dataclasses.replace(PROTOCOLS[name], num_frames=1)
    found, expected = preprocess(protocol, picture[None])[0], EXPECTED[name](picture.astype(np.float64))
    assert found.shape == expected.shape == (protocol.side, protocol.side, 3) and found.dtype == np.float32
    if name.startswith("cd-fvd"):  # a level is cut off whole where float32 falls on the other side
        error = np.abs(found - expected)
        assert error.max() <= 2.01 / 255 and error.mean() < 2e-4
    else:
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_levels_that_float32_misses_are_lost():
    """Of the 256 levels some do not survive / 255 * 255 in float32: that is part of the VideoGPT-style convention."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    protocol = PROTOCOLS["common-metrics-videogpt"]
    steps = (*protocol.steps[:2], Resize("torch-bilinear", 16))
    found = preprocess(dataclasses.replace(protocol, num_frames=1, steps=steps), levels)[0, ..., 0]
    np.testing.assert_array_equal(found, whole_levels(levels[0, ..., 0]))


@pytest.mark.parametrize("name", sorted(OTHER_FRAMES))
def test_frames(name):
    """The rest is StyleGAN-V's."""
    num, stride = OTHER_FRAMES[name]
    protocol, base = PROTOCOLS[name], PROTOCOLS["stylegan-v"]
    assert dataclasses.replace(protocol, name=base.name, num_frames=16, stride=1) == base
    small = dataclasses.replace(protocol, steps=(Resize("tf1-bilinear", 2),))
    video = np.arange(140, dtype=np.uint8).reshape(140, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    found = preprocess(small, video)
    np.testing.assert_array_equal(found[:, 0, 0, 0], np.arange(140)[: num * stride : stride])
    with pytest.raises(UserError, match=f"takes {num * stride} frames, the video has 127"):
        preprocess(small, video[:127])


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_distance(name):
    """Covariances and the root by numpy and scipy, with the published divisor."""
    protocol, rng = PROTOCOLS[name], np.random.default_rng(0)
    sides = [(rng.standard_normal((20, 5)) @ rng.standard_normal((5, 5)) + i).astype(np.float32) for i in range(2)]
    scatter = [x - x.mean(0) for x in (side.astype(np.float64) for side in sides)]
    a, b = (x.T @ x / (len(x) - (1 - (name in DDOF))) for x in scatter)
    gap = np.subtract(*(x.astype(np.float64).mean(0) for x in sides))
    expected = gap @ gap + np.trace(a + b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    found = [gaussian(x, protocol.ddof) for x in sides]
    assert frechet_distance(*found, protocol.root, protocol.root_offset) == pytest.approx(expected, rel=1e-6)


def test_what_the_table_of_published_practice_says_of_numbers_and_networks():
    def row(name: str) -> tuple:
        p = PROTOCOLS[name]
        return p.metric, p.network.name, p.network.eps, p.root, p.num_real, p.num_generated

    assert row("stylegan-v") == ("fvd", "i3d", 1e-3, "sqrtm", 2048, 2048)
    assert row("cd-fvd") == ("fvd", "i3d", 1e-5, "sqrtm", None, 2048)
    assert row("cd-fvd-videomae") == ("fvd", "videomae", 1e-6, "sqrtm", None, 2048)
    assert row("google") == ("fvd", "i3d", 1e-3, "svd", None, None)
    assert row("common-metrics-videogpt")[3] == "svd" and row("torch-fidelity")[3] == "eigenvalues"
    fid = [p for p in PROTOCOLS.values() if p.metric == "fid"]
    assert len(fid) == 4 and all(p.network.name == "inception" and p.network.eps == 1e-3 for p in fid)


def test_a_protocols_hash_is_of_all_that_it_says():
    base: Protocol = PROTOCOLS["pytorch-fid"]
    changes = [{"ddof": 0}, {"root": "svd"}, {"steps": base.steps[:2]}, {"num_real": 5}, {"root_offset": 0.0}]
    changes.append({"network": dataclasses.replace(base.network, eps=1e-5)})
    found = {dataclasses.replace(base, **change).fingerprint for change in changes}
    assert len(found | {base.fingerprint}) == len(changes) + 1
    assert len({p.fingerprint for p in PROTOCOLS.values()}) == len(PROTOCOLS)
    longer = PROTOCOLS["google"].with_frames(32)
    assert longer.name == "google, 32 frames" and longer.fingerprint != PROTOCOLS["google"].fingerprint
    with pytest.raises(UserError, match="pytorch-fid.*clean-fid|clean-fid.*pytorch-fid"):
        choose_protocol("google", "fid")


def test_pillow_agrees_with_the_kernel(picture):
    """The kernel above is Pillow's: where that changes, this says so and not the preset's test alone."""
    theirs = np.asarray(Image.fromarray(picture[..., 0].astype(np.float32)).resize((12, 50), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(theirs, bicubic(picture[..., :1].astype(float), 50, 12)[..., 0], atol=1e-3)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 366), (10, 13), (21, 30), (21, 7)])
def test_resizes_are_pytorchs(height, width, picture):
    import torch

    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    for ours, antialias in ((torch_bilinear, False), (torch_antialiased, True)):
        theirs = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=antialias)
        found = ours(picture[None].astype(np.float32), height, width)
        np.testing.assert_allclose(found[0], theirs[0].permute(1, 2, 0), atol=1e-3)
