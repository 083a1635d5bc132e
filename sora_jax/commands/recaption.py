"""`sora-jax recaption`: one more caption for every clip, from a trained captioner or a vision-language server.

    sora-jax recaption --data CLIPS --captioner RUN --out RECAPTIONED
    sora-jax recaption --data CLIPS --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct --out RECAPTIONED
    sora-jax recaption --data RECAPTIONED --latents LATENTS --out RECAPTIONED_LATENTS

What a clip has been called by people stays. `--estimate` says what a server will be asked for and cost, and stops. A
killed job goes on with the same command. `--latents` puts the captions of recaptioned clips onto latents that were
encoded before: docs/captioning.md.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from data_pipeline import caption_server
from data_pipeline.caption_server import Estimate, Server
from data_pipeline.caption_stream import decode_spread
from data_pipeline.errors import UserError
from data_pipeline.recaption import MAX_FAILURES, CaptionWriter, ClipView, in_process, recaption
from data_pipeline.recaption_latents import recaption_latents
from data_pipeline.shards import Manifest, ShardReader
from sora_jax.commands.shared import check_least, progress

logger = logging.getLogger(__name__)

SERVER_NUMBERS: dict[str, tuple[int | float, str]] = {
    "num_frames": (8, "frames that it is shown of a clip; 0: all"),
    "image_side": (512, "shrink frames to this longer side; 0: as they are"),
    "max_tokens": (300, "of an answer"),
    "temperature": (0.0, "below 0: the server's own"),
    "concurrency": (8, "requests under way at once"),
    "requests_per_minute": (0.0, "0: as many as the server takes"),
    "max_retries": (6, "of a request that fails in passing"),
    "timeout_s": (120.0, "for an answer"),
    "price_in": (0.0, "dollars for a million tokens that the model reads"),
    "price_out": (0.0, "dollars for a million tokens that it writes"),
}
"""Numbers that say something to a server alone: their defaults, and what they are."""
OF_SERVER = ("model", "template", *SERVER_NUMBERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax recaption`."""
    parser.add_argument("--data", required=True, type=Path, help="clip shards, from `sora-jax data build`")
    parser.add_argument("--out", required=True, type=Path, help="folder for the same records with more captions")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--captioner", type=Path, metavar="RUN", help="a captioner's run, from `sora-jax train`")
    who.add_argument("--server", metavar="URL", help="a server that speaks OpenAI's chat completions, with images")
    who.add_argument("--latents", type=Path, metavar="DIR", help="latents of these clips: they get the clips' captions")
    parser.add_argument("--limit", type=int, help="caption the first so many clips alone")
    parser.add_argument("--source", default="", help="who the captions are from (default: the captioner, or the model)")
    parser.add_argument("--language", help="of the captions (default: en from a server, und from a run)")
    parser.add_argument("--trained_on", type=Path, metavar="DIR", help="the clips of the captioner's run, if moved")
    parser.add_argument(
        "--max_failures", type=int, default=MAX_FAILURES, help="stop when so many clips in a row get no caption"
    )
    add_server_options(parser)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """How a server is asked, and what that may cost."""
    group = parser.add_argument_group("server", "the key is in OPENAI_API_KEY; docs/captioning.md")
    group.add_argument("--model", help="the model's name on the server")
    group.add_argument("--template", type=Path, help="a Jinja file: what is asked of each clip")
    for name, (default, meaning) in SERVER_NUMBERS.items():
        group.add_argument(f"--{name}", type=type(default), default=default, help=meaning)
    group.add_argument("--estimate", action="store_true", help="say what will be asked for and what it costs, and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Captions, writes `--out`, and returns the counts."""
    check_least(args, limit=1, num_frames=0, max_failures=1, image_side=0, price_in=0, price_out=0)
    if Manifest.load(args.data).kind != "clip":
        raise UserError(
            f"--data {args.data} holds latents, but a captioner looks at clips: recaption the clips that they were "
            "encoded from, then put the captions onto them with --latents"
        )
    if args.estimate and args.server is None:
        raise UserError("--estimate is of a server's tokens: give --server URL and --model NAME")
    if args.latents is not None:
        _check_unused(args, "--latents", "limit", "source", "language", "trained_on", *OF_SERVER)
        with progress("captions onto latents") as told:
            return recaption_latents(args.data, args.latents, args.out, told)
    return _with_server(args) if args.server else _with_run(args)


def _check_unused(args: argparse.Namespace, chosen: str, *names: str) -> None:
    """Raises UserError for an option that says nothing beside the one that was chosen."""
    for name in names:
        default = SERVER_NUMBERS[name][0] if name in SERVER_NUMBERS else None
        if getattr(args, name) not in (default, ""):
            raise UserError(f"--{name} says nothing beside {chosen}: leave one of them out")


def _with_server(args: argparse.Namespace) -> dict[str, Any]:
    _check_unused(args, "--server", "trained_on")
    server = Server(
        args.server, args.model or "", args.concurrency, args.requests_per_minute, args.max_retries, args.timeout_s,
        args.max_tokens, None if args.temperature < 0 else args.temperature,
    )  # fmt: skip
    captioner = caption_server.captioner(
        server, args.template, args.source, args.language or "en", args.num_frames, args.image_side
    )
    expected = _estimate(args, captioner, server)
    if args.estimate:
        return expected
    if not (args.out / "manifest.json").exists():
        server.check()
    result = _recaption(args, captioner)
    spent = dataclasses.asdict(server.usage)
    return result | {"estimate": expected, "usage": spent | _cost(args, spent["input_tokens"], spent["output_tokens"])}


def _estimate(args: argparse.Namespace, captioner: CaptionWriter, server: Server) -> dict[str, Any]:
    found: Estimate = caption_server.estimate(
        ShardReader(args.data), captioner, server, args.limit, (args.price_in, args.price_out)
    )
    cost = (
        "unknown without --price_in and --price_out" if found.cost_about is None else f"about ${found.cost_about:,.2f}"
    )
    logger.info(
        "%d clips, %d images: about %d tokens to read and at most %d to write; cost: %s",
        found.clips, found.images, found.input_tokens, found.output_tokens_at_most, cost,
    )  # fmt: skip
    return dataclasses.asdict(found)


def _cost(args: argparse.Namespace, tokens_in: int, tokens_out: int) -> dict[str, float]:
    if not args.price_in and not args.price_out:
        return {}
    return {"cost": round((args.price_in * tokens_in + args.price_out * tokens_out) / 1e6, 4)}


def _with_run(args: argparse.Namespace) -> dict[str, Any]:
    if args.model is not None:
        raise UserError("--model is a server's; a captioner's run has its own: leave it out, or give --server URL")
    _check_unused(args, "--captioner", *OF_SERVER)
    from sora_jax.training.fingerprint import fingerprint_of
    from sora_jax.training.trained_captioner import TrainedCaptioner  # after the options are known to be good

    trained = TrainedCaptioner.from_run(args.captioner, clips=args.trained_on)
    fingerprint = fingerprint_of(trained.params, trained.model, trained.stream.canvas, trained.tokenizer.fingerprint)
    captioner = in_process(
        trained.captions,
        args.source or f"captioner {fingerprint[:12]}",
        lambda record: ClipView(decode_spread(record, trained.stream.canvas), (), record),
        options={"captioner": fingerprint, "max_tokens": trained.stream.max_tokens},
        batch_size=trained.micro_batch * trained.mesh.size,
        language=args.language or "und",
    )
    return _recaption(args, captioner)


def _recaption(args: argparse.Namespace, captioner: CaptionWriter) -> dict[str, Any]:
    with progress("captioning clips") as told:
        result = recaption(args.data, args.out, captioner, args.limit, args.max_failures, told)
    logger.info(
        "%(captions)d of %(clips)d clips got a caption, %(already_there)d had it already, %(uncaptioned)d got none, "
        "of which %(left_out)d are damaged and left out",
        result,
    )
    return result
