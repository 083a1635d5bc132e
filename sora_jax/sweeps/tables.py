"""A sweep's results as a table: on a terminal, as Markdown, as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from data_pipeline.errors import UserError, from_os_error
from sora_jax.sweeps.status import Standing
from sora_jax.training.progress import duration

Columns = dict[str, list[Any]]


def sort_standings(standings: Sequence[Standing]) -> list[Standing]:
    """The lowest held-out loss first (without one: the training loss), then what has measured nothing."""

    def key(standing: Standing) -> tuple[bool, float, bool, float, int]:
        held_out, loss = (math.inf if x is None else x for x in (standing.held_out_loss, standing.loss))
        return math.isinf(held_out), held_out, math.isinf(loss), loss, standing.member.index

    return sorted(standings, key=key)


def swept_names(standings: Sequence[Standing]) -> list[str]:
    """The dotted names of all swept fields, in the order in which the members bring them."""
    return list(dict.fromkeys(name for s in standings for name in s.member.values))


def results(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """One dict of plain numbers a member: what the program prints as JSON, and a CSV file holds."""
    names = swept_names(standings)
    return [
        {
            "index": s.member.index,
            "name": s.member.name,
            **{name: s.member.values.get(name) for name in names},
            "state": s.state,
            "step": s.step,
            "num_steps": s.member.num_steps,
            "held_out_loss": s.held_out_loss,
            "loss": s.loss,
            **({} if s.units_per_second is None else {f"{s.unit}_per_second": s.units_per_second}),
            "seconds": s.seconds,
            "left_s": s.left_s,
            "attempts": s.attempts,
            "error": s.error,
        }
        for s in standings
    ]


def columns(standings: Sequence[Standing], *, progress: bool) -> Columns:
    """Heading → cells, as text. `progress` shows how far each member is, else what it measured."""
    cells: Columns = {"": [str(s.member.index) for s in standings]}
    for name in swept_names(standings):
        cells[_heading(name, swept_names(standings))] = [_text(s.member.values.get(name)) for s in standings]
    cells["state"] = [s.state for s in standings]
    cells["step"] = [f"{s.step}/{s.member.num_steps}" for s in standings]
    if progress:
        cells["left"] = [duration(s.left_s) if s.left_s is not None else "" for s in standings]
        cells["starts"] = [str(s.attempts or "") for s in standings]
        cells["error"] = [s.error for s in standings]
        return cells
    cells["held-out loss"] = [_number(s.held_out_loss) for s in standings]
    cells["training loss"] = [_number(s.loss) for s in standings]
    units = sorted({s.unit for s in standings if s.units_per_second is not None})
    for unit in units:
        cells[f"{unit}/s"] = [_number(s.units_per_second if s.unit == unit else None, 3) for s in standings]
    cells["wall time"] = [duration(s.seconds) if s.seconds is not None else "" for s in standings]
    return cells


def rich_table(cells: Columns) -> Table:
    """For a terminal."""
    table = Table(*cells)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def write_table(path: Path, standings: Sequence[Standing]) -> None:
    """A .md file for people or a .csv file for programs. Raises UserError for another ending."""
    writers = {".md": lambda: _markdown(columns(standings, progress=False)), ".csv": lambda: _csv(results(standings))}
    if path.suffix not in writers:
        raise UserError(f"a table is written as {' or '.join(writers)}, not as '{path.suffix}': {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(writers[path.suffix](), encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def _markdown(cells: Columns) -> str:
    rows = [list(cells), ["---"] * len(cells), *map(list, zip(*cells.values(), strict=True))]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _csv(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _heading(name: str, names: Sequence[str]) -> str:
    """The last part of a dotted name, where it is enough to tell the fields apart."""
    last = name.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == last for other in names) > 1 else last


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
