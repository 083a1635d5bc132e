"""`sora-jax evaluate --metric expansion`: how often a long prompt keeps what its short one says."""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from sora_jax.commands import expander
from sora_jax.evaluation.expansion import judge_expansions, short_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this metric."""
    expander.add_arguments(parser)
    parser.add_argument(
        "--source", default="synthetic short", help="expansion: whose captions are expanded (default: %(default)s)"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Of the different captions by `--source` of the split's clips. Raises UserError where there are none."""
    who = expander.read_expander(args)
    if who is None:
        raise UserError("--metric expansion needs --expand RUN, or --expand_server URL and --expand_model NAME")
    prompts = short_prompts(ShardReader(args.real), args.split, args.source, args.num_real)
    if not prompts:
        raise UserError(f"no {args.split} clip of {args.real} has a caption by '{args.source}': name another --source")
    return {"expander": who.name, **judge_expansions(prompts, who(prompts))}
