"""Inception-v3 in PyTorch as NVIDIA's TorchScript file holds it; `sora_jax/evaluation/torch_features.py` has the other.

Widths are divided by `d`. Written from the published sources, apart from the tables of `sora_jax/models/inception.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2dLayer(nn.Module):
    """NVIDIA's unit: a batch norm without gamma, its numbers in buffers of its own."""

    def __init__(self, width_in: int, width: int, size: tuple[int, int], stride: int, padding: tuple[int, int]):
        super().__init__()
        self.stride, self.padding = [stride, stride], list(padding)
        self.register_buffer("weight", torch.zeros(width, width_in, *size))
        for name in ("beta", "mean", "var"):
            self.register_buffer(name, torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.var, bias=self.beta, eps=0.001))


def layer(width_in: int, width: int, size: int | tuple[int, int] = 1, stride: int = 1, valid: bool = False):
    size = (size, size) if isinstance(size, int) else size
    return Conv2dLayer(width_in, width, size, stride, (0, 0) if valid else (size[0] // 2, size[1] // 2))


def chain(*modules, pool: nn.Module | None = None) -> nn.Sequential:
    """conv, conv_1, …, after a pool if there is one."""
    found = nn.Sequential()
    if pool is not None:
        found.add_module("pool", pool)
    for number, module in enumerate(modules):
        found.add_module(f"conv_{number}" if number else "conv", module)
    return found


def averaging() -> nn.AvgPool2d:
    return nn.AvgPool2d(kernel_size=3, stride=1, padding=1, count_include_pad=False)


class Towers(nn.Module):
    """NVIDIA's blocks A and C: a 1x1, two towers and a pooled one."""

    def __init__(self, conv: nn.Module, tower: nn.Module, tower_1: nn.Module, tower_2: nn.Module):
        super().__init__()
        self.conv, self.tower, self.tower_1, self.tower_2 = conv, tower, tower_1, tower_2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(x)], 1)


def nvidia_a(n: int, pooled: int, d: int) -> Towers:
    tower = chain(layer(n, 48 // d), layer(48 // d, 64 // d, 5))
    tower_1 = chain(layer(n, 64 // d), layer(64 // d, 96 // d, 3), layer(96 // d, 96 // d, 3))
    return Towers(layer(n, 64 // d), tower, tower_1, chain(layer(n, pooled // d), pool=averaging()))


def nvidia_c(n: int, seven: int, d: int) -> Towers:
    c, wide, row, column = seven // d, 192 // d, (1, 7), (7, 1)
    tower = chain(layer(n, c), layer(c, c, row), layer(c, wide, column))
    tower_1 = chain(layer(n, c), layer(c, c, column), layer(c, c, row), layer(c, c, column), layer(c, wide, row))
    return Towers(layer(n, wide), tower, tower_1, chain(layer(n, wide), pool=averaging()))


class NvidiaB(nn.Module):
    def __init__(self, n: int, d: int):
        super().__init__()
        self.conv = layer(n, 384 // d, 3, 2, True)
        self.tower = chain(layer(n, 64 // d), layer(64 // d, 96 // d, 3), layer(96 // d, 96 // d, 3, 2, True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), F.max_pool2d(x, 3, 2)], 1)


class NvidiaD(nn.Module):
    def __init__(self, n: int, d: int):
        super().__init__()
        wide = 192 // d
        self.tower = chain(layer(n, wide), layer(wide, 320 // d, 3, 2, True))
        self.tower_1 = chain(
            layer(n, wide), layer(wide, wide, (1, 7)), layer(wide, wide, (7, 1)), layer(wide, wide, 3, 2, True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), F.max_pool2d(x, 3, 2)], 1)


class NvidiaE(nn.Module):
    def __init__(self, n: int, pool: nn.Module, d: int):
        super().__init__()
        wide = 384 // d
        self.tower_conv = layer(n, wide)
        self.tower_1_conv = layer(n, 448 // d)
        self.tower_1_conv_1 = layer(448 // d, wide, 3)
        self.conv = layer(n, 320 // d)
        self.tower_mixed_conv, self.tower_mixed_conv_1 = layer(wide, wide, (1, 3)), layer(wide, wide, (3, 1))
        self.tower_1_mixed_conv, self.tower_1_mixed_conv_1 = layer(wide, wide, (1, 3)), layer(wide, wide, (3, 1))
        self.tower_2_pool, self.tower_2_conv = pool, layer(n, 192 // d)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        parts = [self.conv(x), self.tower_mixed_conv(a), self.tower_mixed_conv_1(a), self.tower_1_mixed_conv(b)]
        parts += [self.tower_1_mixed_conv_1(b), self.tower_2_conv(self.tower_2_pool(x))]
        return torch.cat(parts, 1)


class Nvidia(nn.Module):
    """`inception-2015-12-05.pt`, after its resize."""

    def __init__(self, d: int = 1):
        super().__init__()
        stem = nn.Sequential()
        stem.add_module("conv", layer(3, 32 // d, 3, 2, True))
        stem.add_module("conv_1", layer(32 // d, 32 // d, 3, 1, True))
        stem.add_module("conv_2", layer(32 // d, 64 // d, 3))
        stem.add_module("pool0", nn.MaxPool2d(3, 2))
        stem.add_module("conv_3", layer(64 // d, 80 // d))
        stem.add_module("conv_4", layer(80 // d, 192 // d, 3, 1, True))
        stem.add_module("pool1", nn.MaxPool2d(3, 2))
        blocks = [nvidia_a(192 // d, 32, d), nvidia_a(256 // d, 64, d), nvidia_a(288 // d, 64, d), NvidiaB(288 // d, d)]
        blocks += [nvidia_c(768 // d, seven, d) for seven in (128, 160, 160, 192)] + [NvidiaD(768 // d, d)]
        blocks += [NvidiaE(1280 // d, averaging(), d), NvidiaE(2048 // d, nn.MaxPool2d(3, 1, 1), d)]
        for number, block in enumerate(blocks):
            stem.add_module(f"mixed_{number}" if number else "mixed", block)
        self.layers = stem
        self.output = nn.Linear(2048 // d, 1008)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        features = self.layers(x).mean([2, 3])
        return features if return_features else F.linear(features, self.output.weight)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep a signal's size through units, and norms of every kind of number."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("var"):
            drawn = 0.5 + drawn.abs()
        elif value.ndim > 1:
            drawn = drawn * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "batch3d.weight")):
            drawn = 1 + 0.1 * drawn
        else:
            drawn = 0.1 * drawn
        value.copy_(drawn)
    return module.eval()
