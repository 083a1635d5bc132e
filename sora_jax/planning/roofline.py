"""The least time that a step can take: matmuls at the peak, memory at full speed, collectives on their links.

    step = max(compute, memory, hidden traffic of the busiest link) + exposed traffic

It is a bound and no forecast: matmuls reach perhaps 60 to 85 % of the data sheet's peak, and a real step is slower.
"""

from dataclasses import dataclass

from sora_jax.planning.collectives import Collective
from sora_jax.planning.topologies import Topology

DAY = 86_400.0


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step on one device, and what limits it."""

    compute: float
    memory: float
    hidden: dict[str, float]
    exposed: dict[str, float]
    """link -> seconds"""
    useful: float
    """seconds that the useful FLOPs would take at the peak"""

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, *self.hidden.values(), 0.0) + sum(self.exposed.values())

    @property
    def bound_by(self) -> str:
        parts = {"compute": self.compute, "memory": self.memory, **self.hidden}
        return max(parts, key=lambda name: parts[name])

    @property
    def mfu(self) -> float:
        return self.useful / self.step


def roofline(
    useful_flops: float, executed_flops: float, traffic: float, collectives: list[Collective], topology: Topology
) -> Roofline:
    """FLOPs are of a whole step on all devices, `traffic` bytes of main memory of one."""
    peak = topology.num_devices * topology.chip.peak_bf16
    links = sorted({c.link for c in collectives})
    return Roofline(
        compute=executed_flops / peak,
        memory=traffic / topology.chip.memory_bandwidth,
        hidden={link: sum(c.seconds for c in collectives if c.link == link and c.is_hidden) for link in links},
        exposed={link: sum(c.seconds for c in collectives if c.link == link and not c.is_hidden) for link in links},
        useful=useful_flops / peak,
    )
