"""Many plans, one after another, each in a process of its own: a compiler is chosen before jax starts."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.planning.topologies import GiB

logger = logging.getLogger(__name__)

EXIT_DOES_NOT_FIT = 2
FIELDS = ("config", "topology", "slices", "mesh")
OF_SAMPLE = ("size", "seconds", "fps", "rows", "steps", "guidance", "solver", "autoencoder", "tile")
"""Fields of a plan's `sample`: the options of `sora-jax plan --sample`."""
COLUMNS = (
    "config and topology", "parameters", "mesh", "rows x tokens", "GiB of", "least step, s", "MFU at most",
    "bound by", "hidden collectives", "and their time", "compiled in, s",
)  # fmt: skip


def run_plans(plans: Sequence[Mapping[str, Any]], extra: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The report of each plan, as soon as it is there. Raises UserError for a plan with an unknown field."""
    for plan in plans:
        for names, known in ((plan, (*FIELDS, "sample")), (plan.get("sample", {}), OF_SAMPLE)):
            for name in names:
                if name not in known:
                    raise UserError(f"a plan has a field '{name}', which is none of {', '.join(known)}")
    for plan in plans:
        values = {name: value for name, value in plan.items() if name != "sample"} | plan.get("sample", {})
        options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        options += ["--sample"] if "sample" in plan else []
        command = [sys.executable, "-m", "sora_jax.commands.main", "plan", *options, *extra]
        logger.info("%s", " ".join(command[3:]))
        # A parent's choice of devices would end up in the child's.
        environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
        lines = done.stdout.splitlines()
        yield {**plan, **(json.loads(lines[-1]) if lines else {"fits": False, "exit_code": done.returncode})}


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """A table of reports, for docs/plan.md."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(_row(report) for report in reports)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(report: Mapping[str, Any]) -> str:
    """What a step, or a sampling, is computed of."""
    if "sampling" in report:
        return f"{report['clips']} x {report['row_tokens']}: {report['asked']}, {report['sampling']}"
    unit = "tokens" if "tokens_per_step" in report else "pixels"
    per_row = f"{report[f'{unit}_per_step'] // report['batch_rows']}{'' if unit == 'tokens' else ' pixels'}"
    return f"{report['batch_rows']} x {per_row}, {report['microbatches']} parts"


def _row(report: Mapping[str, Any]) -> list[str]:
    slices = f" x {report['num_slices']}" if report.get("num_slices", 1) > 1 else ""
    name = f"`{report['config'].removeprefix('configs/')}` on {report['topology']}{slices}"
    if "bytes" not in report:
        return [name, f"failed with exit code {report.get('exit_code')}", *[""] * (len(COLUMNS) - 2)]
    sizes = report["bytes"]
    cells = [
        name,
        f"{report['parameters'] / 1e9:.2f} B + {report['frozen_parameters'] / 1e9:.2f} B frozen",
        " ".join(f"{axis}={n}" for axis, n in report["mesh"].items()),
        _rows(report),
        f"{sizes['total'] / GiB:.1f} of {sizes['available'] / GiB:.1f}{'' if report['fits'] else ': does not fit'}",
    ]
    if "roofline" not in report:
        return [*cells, *[""] * (len(COLUMNS) - len(cells))]
    line, hidden = report["roofline"], report["hidden"]
    return [
        *cells,
        f"{line['step_s']:.3f}{' in all' if 'sampling' in report else ''}",
        f"{report['mfu_bound']:.1%}",
        line["bound_by"],
        f"{hidden['hidden']} of {hidden['collectives']}",
        f"{hidden['hidden_share_of_time']:.1%}",
        f"{report['compile_seconds']:.0f}",
    ]
