"""`sora-jax sample`: text to video or image, from a trained run."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import check_memory, write_video
from sora_jax.config import build_config
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig, Generator, Request
from sora_jax.models.codec import load_codec
from sora_jax.objectives.diffusion import load_text_encoder, model_config, stream_config
from sora_jax.training.checkpoint import load_params
from sora_jax.types import Frozen

ENDINGS = ("mp4", "webm", "gif", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, type=Path, help="a diffusion run, from `sora-jax train`")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to show")
    what.add_argument("--prompts", type=Path, help="a file with a prompt on each line; --out is then a folder")
    parser.add_argument("--out", required=True, type=Path, help="file ending in mp4, webm, gif or png; or a folder")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the run's preview)")
    parser.add_argument("--frames", type=int, help="number of frames; 1 is an image (default: the run's preview)")
    parser.add_argument("--fps", type=float, help="frames per second (default: the run's preview)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i of a file uses seed + i")
    parser.add_argument("--steps", type=int, default=30, help="solver steps")
    parser.add_argument("--guidance", type=float, default=6.0, help="guidance scale; 1 is none")
    parser.add_argument("--solver", default="euler", help="euler, heun, midpoint, dpm++ or unipc")
    parser.add_argument("--format", choices=ENDINGS, default="mp4", help="file ending inside a folder")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters instead of their EMA")
    parser.add_argument("--latents", type=Path, help="the latents' folder, if it has moved since training")
    parser.add_argument("--tile", type=int, default=0, help="decode frames in tiles of so many pixels; 0: whole")
    parser.add_argument("--text_encoder", type=Path, help="the frozen text encoder's folder, if it has moved")
    parser.add_argument("--rows_per_batch", type=int, default=8, help="packed rows that are sampled at once")


def run(args: argparse.Namespace) -> dict[str, Any]:
    sampling = SamplingConfig(args.steps, args.guidance, args.solver)
    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.prompts)
    generator, params, frozen, preview, step = load_run(args)
    requests = make_requests(prompts, args, preview)
    files = [args.out] if args.prompt is not None else name_files(args.out, prompts, args.format)
    check_endings(files, requests)
    generator = generator.fitting(requests)  # an illegal size is one line of error, not one below a progress bar
    written: list[dict[str, Any]] = [{} for _ in requests]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("sampling", total=len(requests))
        for number, frames in generator.generate(params, frozen, requests, sampling, args.rows_per_batch):
            request, path = requests[number], files[number]
            write_video(path, frames, request.fps)
            written[number] = describe(request, path, sampling, step)
            progress.advance(bar)
    if args.prompt is not None:
        return written[0]
    lines = "".join(json.dumps(line) + "\n" for line in written)
    (args.out / "samples.jsonl").write_text(lines)
    return {"samples": len(written), "out": str(args.out), "step": step}


def load_run(args: argparse.Namespace) -> tuple[Generator, Any, Frozen, dict[str, Any], int]:
    """The run's generator, its parameters, its frozen networks, its preview's settings and the checkpoint's step."""
    loaded = load_params(args.run, args.step, ema=not args.raw)
    if "dit" not in loaded.params:
        raise UserError(f"{args.run} is no generator's run: it trained {', '.join(loaded.params)}")
    latents = args.latents or Path(loaded.config["data"]["path"])
    if not (latents / "autoencoder").exists():
        raise UserError(f"the run's latents are not at {latents}; say where they are with --latents")
    codec, tokenizer = load_codec(latents / "autoencoder"), Tokenizer.load(latents / "tokenizer.model")
    codec.check_fingerprint(loaded.fingerprints["autoencoder"], latents)
    if tokenizer.fingerprint != loaded.fingerprints["tokenizer"]:
        raise UserError(
            f"{latents} holds tokenizer {tokenizer.fingerprint[:12]}, but the run was trained with "
            f"{loaded.fingerprints['tokenizer'][:12]}; point --latents at the latents that it was trained on"
        )
    layout = stream_config(loaded.config).layout(codec.config.latent_channels)
    described = dict(loaded.config["model"])
    if args.text_encoder is not None:
        described["text_encoder"] = {**described.get("text_encoder", {}), "path": str(args.text_encoder)}
    model = model_config(described, layout.patch_values, tokenizer.vocab_size)
    flow = build_config(FlowConfig, loaded.config.get("flow", {}), "config.flow")
    generator = Generator(DiffusionConfig(model, flow), layout, codec.in_tiles(args.tile), tokenizer)
    frozen = load_frozen(described, tokenizer, latents, loaded.fingerprints)
    return generator, loaded.params["dit"], frozen, dict(loaded.config.get("preview", {})), loaded.step


def load_frozen(model: dict[str, Any], tokenizer: Tokenizer, latents: Path, fingerprints: dict[str, str]) -> Frozen:
    """The frozen text encoder of `config.model`, if it has one, on the devices. Raises UserError for another one."""
    encoder = load_text_encoder(model, tokenizer, latents)
    if encoder is None:
        return {}
    expected = fingerprints.get("text_encoder", "none")
    if encoder.fingerprint != expected:
        raise UserError(
            f"{model['text_encoder']['path']} holds text encoder {encoder.fingerprint[:12]}, but the run was trained "
            f"with {expected[:12]}; say where that is with --text_encoder"
        )
    return jax.device_put({"text_encoder": encoder.params})


def make_requests(prompts: list[str], args: argparse.Namespace, preview: dict[str, Any]) -> list[Request]:
    size = args.size or f"{preview.get('width', 32)}x{preview.get('height', 32)}"
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match:
        raise UserError(f"--size is '{size}', but must be WIDTHxHEIGHT in pixels, such as 256x144")
    width, height = int(match[1]), int(match[2])
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed is {args.seed}, but must be from 0 to {2**31 - 1}")
    frames = args.frames if args.frames is not None else preview.get("num_frames", 9)
    fps = args.fps if args.fps is not None else preview.get("fps", 8.0)
    check_memory(frames, height, width)
    return [Request(p, width, height, frames, fps, args.seed + i) for i, p in enumerate(prompts)]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines left out."""
    try:
        # By line feeds alone: `splitlines` would also cut a prompt at the separators that word processors put in.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one on each line")
    return prompts


def name_files(out: Path, prompts: list[str], ending: str) -> list[Path]:
    """`OUT/<prompt>-<number>.<ending>` for each prompt."""
    if any(path.is_file() for path in (out, *out.parents)):
        raise UserError(f"--out {out} is a file or lies below one, but several prompts need a folder")
    out.mkdir(parents=True, exist_ok=True)
    slugs = (re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-")[:60] or "prompt" for p in prompts)
    return [out / f"{slug}-{number:04d}.{ending}" for number, slug in enumerate(slugs)]


def check_endings(files: list[Path], requests: list[Request]) -> None:
    for path, request in zip(files, requests, strict=True):
        ending = path.suffix.lstrip(".").lower()
        if path.is_dir() or any(parent.is_file() for parent in path.parents):
            raise UserError(f"{path} cannot be written: it is a folder, or lies below a file; choose another --out")
        if ending not in ENDINGS:
            raise UserError(f"{path} ends in '{path.suffix}'; choose one of {', '.join('.' + e for e in ENDINGS)}")
        if ending == "png" and request.num_frames != 1:
            raise UserError(f"{path} is an image, but --frames is {request.num_frames}; ask for --frames 1 or for mp4")


def describe(request: Request, path: Path, sampling: SamplingConfig, step: int) -> dict[str, Any]:
    """What made a file, for the manifest beside it."""
    return {
        "file": path.name,
        "path": str(path),
        "prompt": request.prompt,
        "seed": request.seed,
        "size": f"{request.width}x{request.height}",
        "frames": request.num_frames,
        "fps": request.fps,
        "steps": sampling.num_steps,
        "guidance": sampling.guidance,
        "solver": sampling.solver,
        "step": step,
    }
