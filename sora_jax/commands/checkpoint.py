"""`sora-jax checkpoint`: a run's checkpoints from outside: list, verify, prune, export, import, import-autoencoder.

    sora-jax checkpoint list --run runs/dit
    sora-jax checkpoint verify --run runs/dit
    sora-jax checkpoint prune --run runs/dit --keep_last 2 --keep_every 1000 --keep_best loss --dry_run
    sora-jax checkpoint export --run runs/dit --out dit.safetensors
    sora-jax checkpoint import --file dit.safetensors --out runs/dit_copy
    sora-jax checkpoint import-autoencoder --file Wan2.1_VAE.pth --out runs/wan

`verify` exits with code 2 for a damaged checkpoint, and says how to go on.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from data_pipeline.errors import UserError
from sora_jax.models.codec import Codec, architecture, load_codec
from sora_jax.models.layers import DTYPES
from sora_jax.models.taef_files import holds_taef, load_taef
from sora_jax.models.wan_files import load_wan
from sora_jax.training.interchange import export_run, import_run
from sora_jax.training.inventory import Entry, list_checkpoints, prune_run, verify_run
from sora_jax.training.retention import Retention
from sora_jax.training.trained_codec import is_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax checkpoint`."""
    verbs = parser.add_subparsers(dest="checkpoint_verb", required=True, metavar="list|verify|prune|export|import|…")
    verbs.add_parser("list", help="every checkpoint: step, time, size, loss, tier").set_defaults(checkpoint_run=_list)
    verify = verbs.add_parser("verify", help="read all files and compare them with what was written")
    verify.set_defaults(checkpoint_run=_verify)
    prune = verbs.add_parser("prune", help="delete all but the checkpoints named here and the newest good one")
    prune.add_argument("--keep_last", type=int, required=True, metavar="N", help="the newest")
    prune.add_argument("--keep_every", type=int, default=0, metavar="M", help="those of each M-th step")
    prune.add_argument("--keep_best", default="", metavar="METRIC", help="the best held out: loss, or psnr:max")
    prune.add_argument("--aside", action="store_true", help="delete those that --from_step has set aside, too")
    prune.add_argument("--dry_run", action="store_true", help="say what would be deleted")
    prune.set_defaults(checkpoint_run=_prune)
    export = verbs.add_parser("export", help="the parameters as one safetensors file")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    export.add_argument("--raw", action="store_true", help="the parameters themselves, not their average (EMA)")
    export.set_defaults(checkpoint_run=_export)
    for child in (*verbs.choices.values(),):
        child.add_argument("--run", type=Path, required=True, metavar="DIR", help="the --workdir of a training run")
    for child in (verify, export):
        child.add_argument("--step", type=int, help="this checkpoint (verify: all, export: the newest)")
    back = verbs.add_parser("import", help="a run directory of an exported file: to sample from, or to --init_from")
    back.add_argument("--file", type=Path, required=True, metavar="FILE.safetensors")
    back.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run directory to make")
    back.set_defaults(checkpoint_run=lambda args: import_run(args.file, args.out))
    published = verbs.add_parser("import-autoencoder", help="an export of a published autoencoder, to encode with")
    published.add_argument(
        "--file", type=Path, required=True, metavar="FILE|DIR", help="Wan 2.1's VAE, or the folder of it or of TAEF2"
    )
    published.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the export goes")
    published.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of activations")
    published.add_argument("--sha256", default="", metavar="HEX", help="the file's checksum, or how it begins")
    published.set_defaults(checkpoint_run=_import_autoencoder)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does what one of the six verbs says."""
    return args.checkpoint_run(args)


def _list(args: argparse.Namespace) -> dict[str, Any]:
    entries = list_checkpoints(args.run)
    Console(stderr=True).print(_table(entries, str(args.run)))
    return {"run": str(args.run), "checkpoints": [{**dataclasses.asdict(e), "path": str(e.path)} for e in entries]}


def _table(entries: list[Entry], title: str) -> Table:
    table = Table("step", "saved", "MiB", "loss", "held out", "tier", "status", title=title, title_justify="left")
    for entry in entries:
        held_out = next(iter(entry.held_out.items()), ("", None))  # evaluations name first what is to become small
        table.add_row(
            str(entry.step),
            time.strftime("%m-%d %H:%M:%S", time.localtime(entry.saved_at)),
            f"{entry.size_bytes / 2**20:.1f}",
            "" if entry.loss is None else f"{entry.loss:.4g}",
            "" if held_out[1] is None else f"{held_out[0]} {held_out[1]:.4g}",
            entry.tier,
            entry.status,
        )
    return table


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    return verify_run(args.run, args.step)


def _prune(args: argparse.Namespace) -> dict[str, Any]:
    for name, least in (("keep_last", 1), ("keep_every", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}, but must be at least {least}")
    retention = Retention(args.keep_last, args.keep_every, args.keep_best)
    return prune_run(args.run, retention, aside=args.aside, dry_run=args.dry_run)


def _export(args: argparse.Namespace) -> dict[str, Any]:
    return export_run(args.run, args.out, args.step, ema=not args.raw)


def _import_autoencoder(args: argparse.Namespace) -> dict[str, Any]:
    """Raises UserError, too, where `out` holds something else already."""
    if is_run(args.out):
        raise UserError(f"{args.out} is a run with checkpoints of its own; choose another --out")
    codec = _published(args)
    if (args.out / "autoencoder.json").exists() and load_codec(args.out).fingerprint != codec.fingerprint:
        raise UserError(f"{args.out} holds another autoencoder; choose another --out, or delete it")
    codec.save(args.out)
    config = codec.config
    return {
        "out": str(args.out),
        "architecture": architecture(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(codec.params)),
        "latent_channels": config.latent_channels,
        "compression": f"{config.temporal_compression}x{config.spatial_compression}x{config.spatial_compression}",
        "fingerprint": codec.fingerprint,
    }


def _published(args: argparse.Namespace) -> Codec:
    if not holds_taef(args.file):
        return load_wan(args.file, args.dtype, args.sha256)
    if args.sha256:
        raise UserError(f"--sha256 is one file's, but {args.file} holds TAEF2's two; leave it out")
    return load_taef(args.file, args.dtype)
