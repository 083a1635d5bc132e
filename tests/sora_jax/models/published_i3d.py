"""I3D in PyTorch as published twice: piergiaj's port (TensorFlow's padding), and hassony2's, which TorchScript holds.

Widths are divided by `d`. Written from the published sources, apart from the tables of `sora_jax/models/i3d.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
WIDTHS_IN = dict(zip(BLOCKS, (192, 256, 480, 512, 512, 512, 528, 832, 832), strict=True))


def pad_same(x: Tensor, size, stride) -> Tensor:
    """Zeros as TensorFlow's SAME puts them, by the size of the input."""
    sides = []
    for length, k, s in reversed(list(zip(x.shape[2:], size, stride, strict=True))):
        total = max(k - s, 0) if length % s == 0 else max(k - length % s, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class MaxPoolSame(nn.MaxPool3d):
    def forward(self, x):
        return super().forward(pad_same(x, self.kernel_size, self.stride))


class Unit3D(nn.Module):
    def __init__(
        self, width_in: int, width: int, size: int = 1, stride: int = 1, head: bool = False, eps: float = 1e-5
    ):
        super().__init__()
        self.conv3d = nn.Conv3d(width_in, width, size, stride, bias=head)
        self.head = head
        if not head:
            self.bn = nn.BatchNorm3d(width, eps=eps)

    def forward(self, x):
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.head else F.relu(self.bn(x))


class InceptionModule(nn.Module):
    def __init__(self, n: int, widths, d: int, eps: float):
        super().__init__()
        w = [width // d for width in widths]
        self.b0 = Unit3D(n, w[0], eps=eps)
        self.b1a, self.b1b = Unit3D(n, w[1], eps=eps), Unit3D(w[1], w[2], 3, eps=eps)
        self.b2a, self.b2b = Unit3D(n, w[3], eps=eps), Unit3D(w[3], w[4], 3, eps=eps)
        self.b3a, self.b3b = MaxPoolSame((3, 3, 3), (1, 1, 1)), Unit3D(n, w[5], eps=eps)

    def forward(self, x):
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class Piergiaj(nn.Module):
    """`InceptionI3d(400)`, and cd-fvd's."""

    def __init__(self, d: int = 1, eps: float = 1e-5, side: int = 7):
        super().__init__()
        self.side = side
        self.Conv3d_1a_7x7 = Unit3D(3, 64 // d, 7, 2, eps=eps)
        self.Conv3d_2b_1x1 = Unit3D(64 // d, 64 // d, eps=eps)
        self.Conv3d_2c_3x3 = Unit3D(64 // d, 192 // d, 3, eps=eps)
        for name, widths in BLOCKS.items():
            self.add_module(f"Mixed_{name}", InceptionModule(WIDTHS_IN[name] // d, widths, d, eps))
        self.logits = Unit3D(1024 // d, 400, head=True)

    def forward(self, x):
        pool_2 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        x = pool_2(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(pool_2(self.Conv3d_1a_7x7(x)))))
        for name in BLOCKS:
            if name == "4b":
                x = MaxPoolSame((3, 3, 3), (2, 2, 2))(x)
            if name == "5b":
                x = MaxPoolSame((2, 2, 2), (2, 2, 2))(x)
            x = getattr(self, f"Mixed_{name}")(x)
        x = F.avg_pool3d(x, (2, self.side, self.side), 1)
        return self.logits(x).squeeze(3).squeeze(3).mean(2)


class MaxPool3dTFPadding(nn.Module):
    """Pads by window minus stride, whatever the input, and keeps a last window that sticks out."""

    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        sides: list[int] = []
        for k, s in reversed(list(zip(size, stride, strict=True))):
            total = max(k - s, 0)
            sides += [total // 2, total - total // 2]
        self.sides = sides
        self.pool = nn.MaxPool3d(size, stride, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.pad(x, self.sides))


class Unit3Dpy(nn.Module):
    def __init__(self, width_in: int, width: int, size: int = 1, stride: int = 1):
        super().__init__()
        self.total, self.odd = max(size - stride, 0), max(size - 1, 0)
        self.halves = stride == 2
        self.conv3d = nn.Conv3d(width_in, width, size, stride, bias=False)
        self.batch3d = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        side, time = self.total, self.total
        if self.halves and x.shape[2] % 2 == 1:
            time = self.odd
        pads = [side // 2, side - side // 2, side // 2, side - side // 2, time // 2, time - time // 2]
        return F.relu(self.batch3d(self.conv3d(F.pad(x, pads))))


class HeadPy(nn.Module):
    def __init__(self, width_in: int):
        super().__init__()
        self.conv3d = nn.Conv3d(width_in, 400, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class MixedPy(nn.Module):
    def __init__(self, n: int, widths, d: int):
        super().__init__()
        w = [width // d for width in widths]
        self.branch_0 = Unit3Dpy(n, w[0])
        self.branch_1 = nn.Sequential(Unit3Dpy(n, w[1]), Unit3Dpy(w[1], w[2], 3))
        self.branch_2 = nn.Sequential(Unit3Dpy(n, w[3]), Unit3Dpy(w[3], w[4], 3))
        self.branch_3 = nn.Sequential(MaxPool3dTFPadding((3, 3, 3), (1, 1, 1)), Unit3Dpy(n, w[5]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], 1)


class Hassony(nn.Module):
    """hassony2's `I3D(400)` with the arguments of StyleGAN-V's TorchScript file."""

    def __init__(self, d: int = 1, side: int = 7):
        super().__init__()
        self.side, n = side, {name: width // d for name, width in WIDTHS_IN.items()}
        self.conv3d_1a_7x7 = Unit3Dpy(3, 64 // d, 7, 2)
        self.maxPool3d_2a_3x3 = MaxPool3dTFPadding((1, 3, 3), (1, 2, 2))
        self.conv3d_2b_1x1 = Unit3Dpy(64 // d, 64 // d)
        self.conv3d_2c_3x3 = Unit3Dpy(64 // d, 192 // d, 3)
        self.maxPool3d_3a_3x3 = MaxPool3dTFPadding((1, 3, 3), (1, 2, 2))
        self.mixed_3b, self.mixed_3c = (MixedPy(n[b], BLOCKS[b], d) for b in ("3b", "3c"))
        self.maxPool3d_4a_3x3 = MaxPool3dTFPadding((3, 3, 3), (2, 2, 2))
        self.mixed_4b, self.mixed_4c, self.mixed_4d = (MixedPy(n[b], BLOCKS[b], d) for b in ("4b", "4c", "4d"))
        self.mixed_4e, self.mixed_4f = (MixedPy(n[b], BLOCKS[b], d) for b in ("4e", "4f"))
        self.maxPool3d_5a_2x2 = MaxPool3dTFPadding((2, 2, 2), (2, 2, 2))
        self.mixed_5b, self.mixed_5c = (MixedPy(n[b], BLOCKS[b], d) for b in ("5b", "5c"))
        self.conv3d_0c_1x1 = HeadPy(1024 // d)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = x / 255 * 2 - 1
        if resize:
            x = F.interpolate(x, size=[x.shape[2], 224, 224], mode="trilinear", align_corners=False)
        x = self.maxPool3d_2a_3x3(self.conv3d_1a_7x7(x))
        x = self.maxPool3d_3a_3x3(self.conv3d_2c_3x3(self.conv3d_2b_1x1(x)))
        x = self.maxPool3d_4a_3x3(self.mixed_3c(self.mixed_3b(x)))
        x = self.mixed_4f(self.mixed_4e(self.mixed_4d(self.mixed_4c(self.mixed_4b(x)))))
        x = self.mixed_5c(self.mixed_5b(self.maxPool3d_5a_2x2(x)))
        x = self.conv3d_0c_1x1(F.avg_pool3d(x, [2, self.side, self.side], 1))
        logits = x.squeeze(3).squeeze(3).mean(2)
        return logits if return_features else torch.softmax(logits, 1)
