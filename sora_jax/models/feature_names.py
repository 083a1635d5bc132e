"""How the published files of Inception-v3 and I3D name their tensors."""

from collections.abc import Callable
from dataclasses import dataclass

from sora_jax.models.inception import InceptionConfig, inception_units

NVIDIA_STEM = ("conv", "conv_1", "conv_2", "conv_3", "conv_4")
NVIDIA_MIXED = {
    "A": ("conv", "tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_2.conv"),
    "B": ("conv", "tower.conv", "tower.conv_1", "tower.conv_2"),
    "C": (
        *("conv", "tower.conv", "tower.conv_1", "tower.conv_2"),
        *(f"tower_1.conv{n}" for n in ("", "_1", "_2", "_3", "_4")),
        "tower_2.conv",
    ),
    "D": ("tower.conv", "tower.conv_1", *(f"tower_1.conv{n}" for n in ("", "_1", "_2", "_3"))),
    "E": (
        *("conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1"),
        *("tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv"),
    ),
}
"""The units of each of Inception's blocks in NVIDIA's file, in our order."""
HASSONY_BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


SONNET_BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


@dataclass(frozen=True)
class Naming:
    """How a published file names things: a unit's name there, and below it its parts. `gamma` "" is one everywhere."""

    unit: Callable[[str], str]
    weight: str
    gamma: str
    beta: str
    mean: str
    variance: str
    head: str
    head_parts: tuple[str, str] = ("weight", "bias")
    joint: str = "."

    def of(self, name: str) -> str:
        """The published name of one of our tensors; "" where it has none."""
        unit, _, part = name.rpartition(".")
        if unit == "head":
            return f"{self.head}{self.joint}{self.head_parts[part == 'bias']}"
        below = getattr(self, part)
        return below and f"{self.unit(unit)}{self.joint}{below}"


def _nvidia_unit(name: str) -> str:
    units = [wiring.name for wiring in inception_units(InceptionConfig())[0]]
    blocks = list(dict.fromkeys(unit.split(".")[0] for unit in units if "." in unit))
    if "." not in name:
        return f"layers.{NVIDIA_STEM[units.index(name)]}"
    block = name.split(".")[0]
    number = blocks.index(block)
    place = [unit for unit in units if unit.startswith(f"{block}.")].index(name)
    return f"layers.mixed{f'_{number}' if number else ''}.{NVIDIA_MIXED['AAABCCCCDEE'[number]][place]}"


def _hassony_unit(name: str) -> str:
    block, _, branch = name.partition(".")
    block = block[0].lower() + block[1:]
    return f"{block}.{HASSONY_BRANCHES[branch]}" if branch else block


def _sonnet_unit(name: str) -> str:
    block, _, branch = name.partition(".")
    if name == "Mixed_5b.b2b":
        return "Mixed_5b/Branch_2/Conv3d_0a_3x3"  # published so, a slip in DeepMind's code
    return f"{block}/{SONNET_BRANCHES[branch]}" if branch else block


TORCHVISION = Naming(str, "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc")
NVIDIA = Naming(_nvidia_unit, "weight", "", "beta", "mean", "var", "output")
PIERGIAJ = Naming(str, "conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "logits.conv3d")
HASSONY = Naming(
    _hassony_unit,
    *("conv3d.weight", "batch3d.weight", "batch3d.bias", "batch3d.running_mean", "batch3d.running_var"),
    "conv3d_0c_1x1.conv3d",
)
SONNET = Naming(
    _sonnet_unit,
    *("conv_3d/w", "", "batch_norm/beta", "batch_norm/moving_mean", "batch_norm/moving_variance"),
    "Logits/Conv3d_0c_1x1/conv_3d",
    ("w", "b"),
    "/",
)
