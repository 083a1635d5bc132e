"""What each channel of a latent space carries over real clips: statistics, information, and channels that carry none.

KL is the divergence of the posterior from the unit Gaussian in nats per latent value, averaged over positions (Kingma &
Welling 2013, appendix B). A channel whose posterior mean hardly varies is dead: its variance over positions is below
`DEAD_VARIANCE`, the threshold of Burda, Grosse and Salakhutdinov (2016, section 5.2) for an inactive unit.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from sora_jax.models.autoencoder import Posterior

DEAD_VARIANCE = 0.01


class LatentHealth:
    """Sums over positions, in float64, so that clips of any shape and number can be added one after another."""

    def __init__(self, num_channels: int) -> None:
        self._count = 0
        self._mean, self._square, self._kl, self._noise = (np.zeros(num_channels) for _ in range(4))

    def add(self, posterior: Posterior) -> None:
        """Adds the posteriors `[B, F, H, W, C]` of some clips."""
        mean, log_variance, kl = (_positions(jax.device_get(x)) for x in (*posterior, posterior.kl()))
        self._count += len(mean)
        self._mean += mean.sum(0)
        self._square += np.square(mean).sum(0)
        self._kl += kl.sum(0)
        self._noise += np.exp(log_variance).sum(0)

    def describe(self) -> dict[str, Any]:
        """Per channel: mean and deviation of the posterior means, the posterior's own deviation (root mean square), KL
        in nats; and which channels are dead."""
        mean = self._mean / self._count
        variance = np.maximum(self._square / self._count - mean**2, 0.0)
        return {
            "num_positions": self._count,
            "mean": mean.tolist(),
            "deviation": np.sqrt(variance).tolist(),
            "noise_deviation": np.sqrt(self._noise / self._count).tolist(),
            "kl_nats": (self._kl / self._count).tolist(),
            "dead_channels": np.flatnonzero(variance < DEAD_VARIANCE).tolist(),
        }


def draw_health(health: dict[str, Any], path: Path) -> None:
    """A PNG of the channels' deviations and KL; dead channels are marked."""
    channels = np.arange(len(health["mean"]))
    figure = Figure(figsize=(max(6.4, 0.25 * len(channels)), 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.bar(channels - 0.2, health["deviation"], 0.4, label="deviation of the means", color="#0f8bd9")
    top.bar(channels + 0.2, health["noise_deviation"], 0.4, label="the posterior's own deviation", color="#e08214")
    top.set(ylabel="latent units")
    top.legend(frameon=False, fontsize=9)
    bottom.bar(channels, health["kl_nats"], 0.8, color="#12a37f")
    bottom.set(xlabel="channel", ylabel="KL (nats a value)")
    for channel in health["dead_channels"]:
        top.axvspan(channel - 0.5, channel + 0.5, color="#e0564f", alpha=0.2)
    figure.savefig(path, dpi=110)


def _positions(x: Float[np.ndarray, "B F H W C"]) -> Float[np.ndarray, "positions C"]:
    return x.reshape(-1, x.shape[-1]).astype(np.float64)
