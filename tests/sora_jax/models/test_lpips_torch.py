"""LPIPS equals its published definition in PyTorch, from files that PyTorch wrote, on random weights."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.lpips import lpips
from sora_jax.models.lpips_weights import load_lpips

pytestmark = pytest.mark.torch

NAMES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
CHANNELS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


def backbone(net: str):
    """`features` of torchvision's networks."""
    import torch
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, width, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(width, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)

    if net == "alex":
        layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2)]
        layers += [nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    elif net == "vgg":
        layers, width = [], 3
        for stage, (wide, num) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
            layers += [nn.MaxPool2d(2, 2)] if stage else []
            for _ in range(num):
                layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
                width = wide
    else:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool]
        layers += [Fire(128, 32, 128), Fire(256, 32, 128), pool, Fire(256, 48, 192), Fire(384, 48, 192)]
        layers += [Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(*layers)


def reference(net: str, layers, heads, x, y):
    """`lpips.LPIPS.forward` of version 0.1."""
    import torch

    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(z.permute(0, 3, 1, 2) - shift[:, None, None]) / scale[:, None, None] for z in (x, y)]
    total, heads = 0.0, iter(heads)
    for number, layer in enumerate(layers):
        pair = [layer(z) for z in pair]
        if number in TAPS[net]:
            f, g = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in pair)
            total = total + torch.nn.functional.conv2d((f - g).square(), next(heads)).mean((1, 2, 3))
    return total


@pytest.mark.parametrize("net", sorted(NAMES))
def test_lpips_equals_pytorch(net, tmp_path):
    import torch

    torch.manual_seed(0)
    layers = backbone(net)
    heads = [torch.rand(1, channels, 1, 1) for channels in CHANNELS[net]]
    state = {f"features.{name}": p for name, p in layers.state_dict().items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "backbone")
    digest = hashlib.sha256((tmp_path / "backbone").read_bytes()).hexdigest()
    (tmp_path / "backbone").rename(tmp_path / f"{NAMES[net]}-{digest[:8]}.pth")
    named = {f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}
    torch.save(named, tmp_path / f"lpips_random_{net}_heads.pth", _use_new_zipfile_serialization=False)
    loaded = load_lpips(net, tmp_path)
    x, y = (torch.rand(2, 50, 71, 3) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        expected = reference(net, layers, heads, x, y).numpy()
    np.testing.assert_allclose(
        lpips(net, loaded.weights, *(jnp.asarray(z.numpy()) for z in (x, y))), expected, rtol=1e-4
    )
