"""What became of every input of a build, as a Markdown table."""

import json
from collections import Counter
from pathlib import Path

from data_pipeline.errors import UserError


def outcomes_table(directory: Path | str) -> tuple[str, dict[str, int]]:
    """(Markdown, number of inputs by outcome) of a built data set. Raises `UserError` if there is none in DIR."""
    path = Path(directory) / "inputs.jsonl"
    if not path.is_file():
        raise UserError(f"{directory} has no inputs.jsonl: build a data set there first (sora-jax data build)")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counts = Counter(line["outcome"] for line in lines)
    rows = [
        f"| {line['path']} | {line['outcome']} | {_contents(line)} | {line['why'].replace('|', '/')} |"
        for line in lines
    ]
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    title = "# What `sora-jax data build` made of every input\n"
    how = "Written by `sora-jax data outcomes --data DIR --out FILE` from its `inputs.jsonl`, never by hand.\n"
    head = [
        title,
        how,
        f"{len(lines)} inputs: {summary}.",
        "",
        "| file | outcome | clips, frames, size, rate | why |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n", dict(counts)


def _contents(line: dict) -> str:
    if line["outcome"] == "rejected":
        return ""
    return f"{line['clips']} x {line['frames'] // line['clips']} x {line['size']} at {line['fps']:g}/s"
