"""`sora-jax evaluate --metric gallery`: a generator in every mode on real held-out clips, to be looked at.

sora-jax evaluate --metric gallery --run RUN --real CLIPS --out gallery.json [--steps 20 --guidance 3 --solver unipc]
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import shown
from sora_jax.evaluation.gallery import check, read_source, show_all
from sora_jax.evaluation.mode_sheet import draw_modes
from sora_jax.generation.api import Generator
from sora_jax.generation.options import SampleOptions


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """A folder of videos and a sheet beside `--out`, and of each result whether its known pixels are the source's."""
    if args.run is None:
        raise UserError("--metric gallery needs --run RUN, a trained generator's run")
    generator = Generator.from_run(args.run, latents=args.latents)
    folder = args.out.with_name(f"{args.out.stem}_videos")
    folder.mkdir(parents=True, exist_ok=True)
    source = read_source(args.real, args.split, generator, folder)
    settings = {"steps": args.steps, "guidance": args.guidance, "solver": args.solver}
    base = SampleOptions(prompt=source.prompts[0], **settings).resolved(generator.run.preview)
    rows, lines = [], []
    for number, one in enumerate(shown(show_all(generator, source, base), None, "sampling")):
        lines.append(check(one, folder, number))
        rows.append((one.mode, one.options.prompt, one.frames, one.is_known))
    sheet = args.out.with_name(f"{args.out.stem}_sheet.jpg")
    draw_modes(rows, sheet)
    wrong = [line["mode"] for line in lines if line.get("known_error")]
    return {
        "run": str(args.run),
        "step": generator.run.step,
        **settings,
        "sheet": sheet.name,
        "videos": folder.name,
        "known_pixels_differ_in": wrong,
        "samples": lines,
    }
