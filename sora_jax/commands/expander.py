"""The options that say who makes short prompts long: a trained expander's run, or a server."""

import argparse
from pathlib import Path

from data_pipeline.errors import UserError
from sora_jax.generation.expansion import Expander


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of prompt expansion."""
    group = parser.add_argument_group("prompt expansion", "short prompts are made long; docs/captioning.md")
    who = group.add_mutually_exclusive_group()
    who.add_argument("--expand", type=Path, metavar="RUN", help="an expander's run, from `sora-jax train`")
    who.add_argument("--expand_server", metavar="URL", help="a server that speaks OpenAI's chat completions")
    group.add_argument("--expand_model", metavar="NAME", help="the model's name on that server")
    group.add_argument("--expand_template", type=Path, metavar="FILE", help="a Jinja file: what the model is told")
    group.add_argument("--expand_tokenizer", type=Path, metavar="FILE", help="the run's tokenizer, if it has moved")


def read_expander(args: argparse.Namespace) -> Expander | None:
    """Who was asked for, or None. Raises UserError for options that do not go together."""
    of_server = {"--expand_model": args.expand_model, "--expand_template": args.expand_template}
    unfit = of_server if args.expand_server is None else {"--expand_tokenizer": args.expand_tokenizer}
    for flag, value in unfit.items():
        if value is not None:
            needed = "--expand_server URL" if args.expand_server is None else "--expand RUN"
            raise UserError(f"{flag} goes with {needed}: give that too, or leave it out")
    if args.expand_server is not None:
        if args.expand_model is None:
            raise UserError("--expand_server needs --expand_model NAME, the model's name on the server")
        return Expander.from_server(args.expand_server, args.expand_model, args.expand_template)
    if args.expand is not None:
        return Expander.from_run(args.expand, tokenizer=args.expand_tokenizer)
    if args.expand_tokenizer is not None:
        raise UserError("--expand_tokenizer goes with --expand RUN: give that too, or leave it out")
    return None
