"""The networks of published FID and FVD in PyTorch: what our features and their speed are held against.

Inception-v3 with torchvision's names and pytorch-fid's patches, I3D as piergiaj ported it, VideoMAE V2's encoder.
Written from the published sources, apart from our own modules. Widths of the first two are divided by `d`.
"""

# pyright: reportMissingImports=false
# PyTorch is an optional extra, which linting does without.

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


class BasicConv2d(nn.Module):
    def __init__(self, width_in: int, width: int, **options):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, bias=False, **options)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    def __init__(self, width_in: int, pooled: int, d: int):
        super().__init__()
        self.branch1x1 = BasicConv2d(width_in, 64 // d, kernel_size=1)
        self.branch5x5_1 = BasicConv2d(width_in, 48 // d, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(48 // d, 64 // d, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(width_in, 64 // d, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(64 // d, 96 // d, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96 // d, 96 // d, kernel_size=3, padding=1)
        self.branch_pool = BasicConv2d(width_in, pooled // d, kernel_size=1)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))], 1)


class InceptionB(nn.Module):
    def __init__(self, width_in: int, d: int):
        super().__init__()
        self.branch3x3 = BasicConv2d(width_in, 384 // d, kernel_size=3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(width_in, 64 // d, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(64 // d, 96 // d, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96 // d, 96 // d, kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionC(nn.Module):
    def __init__(self, width_in: int, seven: int, d: int):
        super().__init__()
        c, wide = seven // d, 192 // d
        row, column = dict(kernel_size=(1, 7), padding=(0, 3)), dict(kernel_size=(7, 1), padding=(3, 0))
        self.branch1x1 = BasicConv2d(width_in, wide, kernel_size=1)
        self.branch7x7_1 = BasicConv2d(width_in, c, kernel_size=1)
        self.branch7x7_2 = BasicConv2d(c, c, **row)
        self.branch7x7_3 = BasicConv2d(c, wide, **column)
        self.branch7x7dbl_1 = BasicConv2d(width_in, c, kernel_size=1)
        self.branch7x7dbl_2 = BasicConv2d(c, c, **column)
        self.branch7x7dbl_3 = BasicConv2d(c, c, **row)
        self.branch7x7dbl_4 = BasicConv2d(c, c, **column)
        self.branch7x7dbl_5 = BasicConv2d(c, wide, **row)
        self.branch_pool = BasicConv2d(width_in, wide, kernel_size=1)

    def forward(self, x):
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(mean_pool(x))], 1)


class InceptionD(nn.Module):
    def __init__(self, width_in: int, d: int):
        super().__init__()
        wide = 192 // d
        self.branch3x3_1 = BasicConv2d(width_in, wide, kernel_size=1)
        self.branch3x3_2 = BasicConv2d(wide, 320 // d, kernel_size=3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(width_in, wide, kernel_size=1)
        self.branch7x7x3_2 = BasicConv2d(wide, wide, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(wide, wide, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(wide, wide, kernel_size=3, stride=2)

    def forward(self, x):
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionE(nn.Module):
    def __init__(self, width_in: int, maximum: bool, d: int):
        super().__init__()
        self.maximum, wide = maximum, 384 // d
        self.branch1x1 = BasicConv2d(width_in, 320 // d, kernel_size=1)
        self.branch3x3_1 = BasicConv2d(width_in, wide, kernel_size=1)
        self.branch3x3_2a = BasicConv2d(wide, wide, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(wide, wide, kernel_size=(3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(width_in, 448 // d, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(448 // d, wide, kernel_size=3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(wide, wide, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(wide, wide, kernel_size=(3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(width_in, 192 // d, kernel_size=1)

    def forward(self, x):
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1) if self.maximum else mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class PytorchFid(nn.Module):
    """`fid_inception_v3()` of pytorch-fid; torch-fidelity's has the same names."""

    def __init__(self, d: int = 1):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32 // d, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32 // d, 32 // d, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32 // d, 64 // d, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64 // d, 80 // d, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80 // d, 192 // d, kernel_size=3)
        self.Mixed_5b = InceptionA(192 // d, 32, d)
        self.Mixed_5c = InceptionA(256 // d, 64, d)
        self.Mixed_5d = InceptionA(288 // d, 64, d)
        self.Mixed_6a = InceptionB(288 // d, d)
        self.Mixed_6b = InceptionC(768 // d, 128, d)
        self.Mixed_6c = InceptionC(768 // d, 160, d)
        self.Mixed_6d = InceptionC(768 // d, 160, d)
        self.Mixed_6e = InceptionC(768 // d, 192, d)
        self.Mixed_7a = InceptionD(768 // d, d)
        self.Mixed_7b = InceptionE(1280 // d, False, d)
        self.Mixed_7c = InceptionE(2048 // d, True, d)
        self.fc = nn.Linear(2048 // d, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), kernel_size=3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = torch.flatten(F.adaptive_avg_pool2d(x, output_size=(1, 1)), 1)
        return features, features.mm(self.fc.weight.T)


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


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoMaeV2(nn.Module):
    """The finetuned `VisionTransformer` of VideoMAE V2 up to its features: its positions are in no file."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, patch: int, classes: int = 174):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, (2, patch, patch), (2, patch, patch))})
        self.blocks = nn.ModuleList([Block(width, heads, hidden) for _ in range(depth)])
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`forward_features` of videos `[N, 3, T, Y, X]`."""
        x = self.patch_embed["proj"](x)
        x = x.flatten(2).transpose(1, 2) + self.positions(x.shape[2:]).to(x.device)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(1))

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Sinusoids of 8 times the grid's places; for another number of times interpolated."""
        width, (times, rows, columns) = self.head.in_features, grid
        place = torch.arange(8 * rows * columns, dtype=torch.float64)[:, None]
        angle = place / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()
        if times == 8:
            return table
        cube = table.T.reshape(1, width, 8, rows, columns)
        cube = F.interpolate(cube, scale_factor=((times + 0.1) / 8, 1, 1), mode="trilinear")
        return cube.flatten(2)[0].T
