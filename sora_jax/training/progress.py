"""What a person sees while a run trains: one live line on a terminal, plain log lines elsewhere."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

logger = logging.getLogger(__name__)


class ProgressLine:
    """Loss, speed, padding, MFU and time left, on stderr."""

    def __init__(self, name: str, num_steps: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._name, self._num_steps = name, num_steps
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
            console=console,
            refresh_per_second=4,
            disable=not self._live,
        )
        self._bar = self._progress.add_task(name, total=num_steps, text="compiling the step")

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Moves the bar; costs microseconds (the drawing is a thread's)."""
        if self._live:
            self._progress.update(self._bar, completed=step)

    def row(self, step: int, row: Mapping[str, float], step_seconds: float) -> None:
        """Shows a window's row."""
        text = describe_row(row, (self._num_steps - step) * step_seconds)
        if self._live:
            self._progress.update(self._bar, completed=step, text=text)
        else:
            logger.info("%s %d/%d %s", self._name, step, self._num_steps, text)

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        if self._live:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            logger.info("%s", text)


def describe_row(row: Mapping[str, float], left_s: float) -> str:
    """`loss 0.123  45.6k tokens/s  padding 0.8%  MFU 41.2%  12:34 left`."""
    parts = [f"loss {row['loss']:.4g}"]
    parts += [f"{_short(v)} {n.removesuffix('_per_second')}/s" for n, v in row.items() if n.endswith("_per_second")]
    if row.get("padding"):
        parts.append(f"padding {row['padding']:.1%}")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    if row.get("data_wait", 0) >= 0.005:
        parts.append(f"waiting for data {row['data_wait']:.0%}")
    if row.get("skipped_total"):
        parts.append(f"{row['skipped_total']:.0f} steps skipped")
    if math.isfinite(left_s):
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
