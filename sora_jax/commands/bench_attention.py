"""`sora-jax bench attention`: attention within the segments of packed rows, forward and backward, on one device.

    sora-jax bench attention --row_tokens 4096 --segments 1,4,16
    sora-jax bench attention --config configs/dit_quickstart.py --pytorch

A row of one length is filled by 1, 4 and 16 segments: `work` is the sum of their squared lengths and `time` that of a
forward and backward pass, both relative to the first. A kernel that skips what does not meet has `time` near `work`.
`--pytorch` measures PyTorch's scaled_dot_product_attention, a call a segment, beside it; it needs
`pip install sora-jax[torch]`.
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.beside_pytorch import importing, leave_memory
from sora_jax.commands.train import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench attention`."""
    parser.add_argument("--config", metavar="FILE.py", help="a generator's run: its row, heads, dtype and kernel")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--row_tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head_width", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--kernel", help="default: the config's, else auto")
    parser.add_argument("--segments", default="1,4,16", help="numbers of segments, with commas")
    parser.add_argument("--steps", type=int, default=3, help="timed passes a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts")
    parser.add_argument("--pytorch", action="store_true", help="PyTorch beside it")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A line of measurements for each number of segments."""
    numbers = _segments(args.segments)
    if args.pytorch:
        leave_memory()
    shape = _shape(args)
    _check(args, shape, numbers)
    import jax  # after the options are known to be good

    from sora_jax.evaluation.attention_speed import draw_row
    from sora_jax.flops import CONVENTION, PEAK_BF16_FLOPS, measured_matmul_peak
    from sora_jax.models.attention import choose_kernel

    device = jax.devices()[0]
    kernel = choose_kernel(shape["kernel"], shape["row_tokens"], has_bias=False)
    size = 1024 if device.platform == "cpu" else 8192
    peak, sheet = measured_matmul_peak(shape["dtype"], size, 10), PEAK_BF16_FLOPS.get(device.device_kind)
    tensors = draw_row(*(shape[name] for name in ("rows", "row_tokens", "heads", "head_width")))
    lines = [_measure(tensors, number, {**shape, "kernel": kernel}, args) for number in numbers]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        **shape,
        "kernel": kernel,
        "lines": [_relative(line, lines[0], peak, sheet) for line in lines],
        "measured_peak": {"tflops_per_s": peak / 1e12, "matmul": f"{shape['dtype']} {size}x{size}"},
        "data_sheet_peak": {"tflops_per_s": sheet / 1e12, "matmul": "bfloat16, dense"} if sheet else None,
        "flop_convention": CONVENTION,
    }


def _segments(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--segments is '{text}', but must be whole numbers with commas, such as 1,4,16") from error
    if min(numbers) < 1:
        raise UserError(f"--segments is '{text}', but a row has at least 1")
    return numbers


def _shape(args: argparse.Namespace) -> dict[str, Any]:
    """What is measured: the config's own row and heads, or the options."""
    shape = {name: getattr(args, name) for name in ("rows", "row_tokens", "heads", "head_width", "dtype")}
    if args.config is None:
        return {**shape, "kernel": args.kernel or "auto"}
    config = load_config(args.config, args.overrides).to_dict()
    if config["train"]["task"] != "diffusion":
        raise UserError(
            f"{args.config} trains the {config['train']['task']}, which has no rows; name a generator's config"
        )
    from sora_jax.objectives.diffusion import model_config

    model = model_config(config["model"], patch_values=1, vocab_size=1)
    return {
        "rows": args.rows,
        "row_tokens": config["data"]["row_tokens"],
        "heads": model.num_heads,
        "head_width": model.width // model.num_heads,
        "dtype": model.dtype,
        "kernel": args.kernel or model.attention_kernel,
    }


def _check(args: argparse.Namespace, shape: dict[str, Any], numbers: list[int]) -> None:
    for name in ("rows", "row_tokens", "heads", "head_width"):
        if shape[name] < 1:
            raise UserError(f"{name} is {shape[name]}, but must be at least 1")
    if min(args.steps, args.rounds) < 1:
        raise UserError(f"--steps is {args.steps} and --rounds {args.rounds}, but both must be at least 1")
    if max(numbers) > shape["row_tokens"]:
        raise UserError(f"{max(numbers)} segments do not fit in a row of {shape['row_tokens']} tokens; ask for fewer")


def _measure(tensors: list[Any], number: int, shape: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One number of segments: ours, and PyTorch's if asked for."""
    from sora_jax.evaluation.attention_speed import measure_attention, useful_flops
    from sora_jax.flops import equal_parts

    lengths = equal_parts(shape["row_tokens"], number)
    ours = measure_attention(tensors, lengths, shape["dtype"], shape["kernel"], args.steps, args.rounds)
    line = {
        "segments": number,
        "sum_of_squares": sum(n * n for n in lengths),
        "flops": useful_flops(tensors, lengths),
        **ours,
    }
    if args.pytorch:
        with importing("torch"):
            from sora_jax.evaluation.torch_attention import measure_torch_attention
        theirs = measure_torch_attention(tensors, lengths, shape["dtype"], args.steps, args.rounds)
        line["pytorch"] = {**theirs, "its_time_over_ours": theirs["step_s"] / ours["step_s"]}
    return line


def _relative(line: dict[str, Any], first: dict[str, Any], peak: float, sheet: float | None) -> dict[str, Any]:
    """The line with its rates, and its work and time as shares of the first line's. A backward pass counts twice."""
    forward, step = line["flops"] / line["forward_s"], 3 * line["flops"] / line["step_s"]
    return {
        **line,
        "work": line["sum_of_squares"] / first["sum_of_squares"],
        "time": line["step_s"] / first["step_s"],
        "forward_time": line["forward_s"] / first["forward_s"],
        "forward_useful_tflops_per_s": forward / 1e12,
        "useful_tflops_per_s": step / 1e12,
        "of_measured_peak": step / peak,
        "of_data_sheet": step / sheet if sheet else None,
    }
