"""Which devices exchange with which: `replica_groups` and `source_target_pairs` of optimized HLO, as mesh axes.

Numbers in HLO are positions in the program's device assignment, which is the mesh in row-major order. Four notations:

    {{0,1},{2,3}}        [2,2]<=[4]        [2,2]<=[2,2]T(1,0)        mesh['a'=2,'b'=2] {'b'}
"""

import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

_MESH = re.compile(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"['\"]([^'\"]+)['\"]=(\d+)")
_MESH_PART = re.compile(r"['\"]([^'\"]+)['\"](?::\((\d+)\)(\d+))?")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def parse_groups(attributes: str, num_devices: int) -> np.ndarray:
    """`[groups, devices of each]`, positions of devices. Without a list of groups, all devices are one."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes):
        return _rings([_ints(pair) for pair in re.findall(r"\{(\d+,\d+)\}", pairs.group(1))])
    found = re.search(r"(?:replica_groups|device_groups)=(.*)", attributes)
    text = found.group(1) if found else ""
    if text.startswith("mesh"):
        return _of_mesh(text, num_devices)
    if iota := _IOTA.match(text):
        shape, source = (_ints(iota.group(i)) for i in (1, 2))
        order = _ints(iota.group(3)) if iota.group(3) else range(len(source))
        return np.arange(math.prod(source)).reshape(source).transpose(tuple(order)).reshape(shape)
    listed = re.match(r"\{((?:\{[\d,]*\},?)+)\}", text)
    if listed:
        return np.array([_ints(group) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))])
    return np.arange(num_devices)[None]


def _of_mesh(text: str, num_devices: int) -> np.ndarray:
    """Groups that vary along some axes of a mesh, or along a part `'a':(before)size` of one."""
    found = _MESH.match(text)
    if not found:
        return np.arange(num_devices)[None]
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(found.group(1))}
    cuts: dict[str, set[int]] = {name: {1, size} for name, size in axes.items()}
    parts = [
        (name, int(before or 1), int(before or 1) * int(size or axes[name]))
        for name, before, size in _MESH_PART.findall(found.group(2))
    ]
    for name, low, high in parts:
        cuts[name] |= {low, high}
    dims = [(name, low, high) for name in axes for low, high in _neighbours(sorted(cuts[name]))]
    inside = [any(n == name and low <= a and b <= high for n, low, high in parts) for name, a, b in dims]
    order = [i for i, within in enumerate(inside) if not within] + [i for i, within in enumerate(inside) if within]
    sizes = [high // low for _, low, high in dims]
    grid = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
    return grid.reshape(-1, math.prod(size for size, within in zip(sizes, inside, strict=True) if within))


def _neighbours(values: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(values))


def _rings(pairs: list[tuple[int, ...]]) -> np.ndarray:
    """The chains that pairs (from, to) form, each in order; those that are shorter than the longest are left out."""
    following = dict(pairs)
    starts = [a for a in following if a not in following.values()] or []
    chains, seen = [], set()
    for start in [*starts, *following]:
        chain, place = [], start
        while place not in seen:
            seen.add(place)
            chain.append(place)
            place = following.get(place, place)
        if chain:
            chains.append(chain)
    return np.array([chain for chain in chains if len(chain) == max(map(len, chains))])


def varying_axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    names = [name for name, size in mesh_shape.items() if size > 1]
    if groups.size == 0 or groups.shape[-1] < 2 or not names:
        return ()
    coordinates = np.array(np.unravel_index(groups, tuple(mesh_shape[name] for name in names)))
    varies = (coordinates != coordinates[..., :1]).any(axis=(1, 2))
    return tuple(name for name, differs in zip(names, varies, strict=True) if differs)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)
