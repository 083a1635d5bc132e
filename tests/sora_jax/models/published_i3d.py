"""I3D in PyTorch as hassony2 ported it: StyleGAN-V's TorchScript file. `torch_features.py` has piergiaj's port.

Widths are divided by `d`. Written from the published sources, apart from the tables of `sora_jax/models/i3d.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_jax.evaluation.torch_features import BLOCKS, WIDTHS_IN


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
