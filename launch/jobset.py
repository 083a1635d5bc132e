#!/usr/bin/env python3
"""One verb on GKE's TPUs, as a manifest on stdout: `launch/jobset.py … -- VERB … | kubectl apply -f -`.

    launch/jobset.py --name dit-xl --tpu v5p:2x2x2 --slices 2 --image IMAGE --bucket BUCKET -- \
        train --config configs/dit_xl.py --workdir /data/runs/dit_xl

A run becomes a JobSet (`jobset.yaml`: all pods restart together from the last checkpoint), a sweep of one-host members
an Indexed Job (`indexed_job.yaml`, with `--members N`; `{task}` in an argument becomes the member's number). The run
directory lies on a volume mounted at /data: `--bucket` (Cloud Storage FUSE) or `--claim` (a PersistentVolumeClaim).
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

HERE = Path(__file__).resolve().parent
EXIT_USER_ERROR = 2
MOUNT = "/data"
PORT = 8476
CHIPS_PER_HOST = 4


class Generation(NamedTuple):
    """A TPU generation on GKE: its node label, the rank of its topologies, and the largest of them in chips.

    Flat topologies are a closed list; one of three dimensions lies within a cube of 4x4x4, or is made of such cubes.
    """

    accelerator: str
    rank: int
    most_chips: int


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", 3, 4096),
    "v5e": Generation("tpu-v5-lite-podslice", 2, 256),
    "v5p": Generation("tpu-v5p-slice", 3, 8960),
    "v6e": Generation("tpu-v6e-slice", 2, 256),
    "tpu7x": Generation("tpu7x", 3, 9216),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


class LaunchError(ValueError):
    """What the user can mend, in one line."""


class Slice(NamedTuple):
    """A TPU slice: how many hosts it has, and how many chips each of them holds."""

    accelerator: str
    topology: str
    hosts: int
    chips_per_host: int


def parse_tpu(text: str) -> Slice:
    """`v5p:2x2x2` as a slice of 2 hosts with 4 chips each. Raises LaunchError for what GKE does not offer."""
    name, _, topology = text.partition(":")
    if name not in GENERATIONS:
        raise LaunchError(f"--tpu {text}: '{name}' is none of {', '.join(GENERATIONS)}; write it like v5p:2x2x2")
    generation = GENERATIONS[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", topology) or topology.count("x") != generation.rank - 1:
        example = "4x4" if generation.rank == 2 else "2x2x2"
        raise LaunchError(f"--tpu {text}: {name} has topologies of {generation.rank} numbers, such as {name}:{example}")
    sides = [int(side) for side in topology.split("x")]
    chips = math.prod(sides)
    if generation.rank == 2 and topology not in FLAT:
        raise LaunchError(f"--tpu {text}: '{topology}' is none of {name}'s topologies: {', '.join(FLAT)}")
    cubes = all(side % 4 == 0 for side in sides) and sides == sorted(sides)
    if generation.rank == 3 and topology not in SMALL_CUBOIDS and not cubes:
        raise LaunchError(
            f"--tpu {text}: a topology of {name} is one of {', '.join(SMALL_CUBOIDS)}, or three multiples of 4 that do "
            "not fall, such as 4x4x8"
        )
    if chips > generation.most_chips:
        raise LaunchError(f"--tpu {text} has {chips} chips, but a slice of {name} has at most {generation.most_chips}")
    per_host = min(chips, CHIPS_PER_HOST)
    return Slice(generation.accelerator, topology, chips // per_host, per_host)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch/jobset.py", description="A verb on GKE, as a manifest on stdout.")
    parser.add_argument("--name", required=True, help="of the JobSet or Job")
    parser.add_argument("--tpu", required=True, metavar="GENERATION:TOPOLOGY", help="of one slice, such as v5p:2x2x2")
    parser.add_argument("--slices", type=int, default=1, help="of that topology (Multislice)")
    parser.add_argument("--image", required=True, help="a container with sora-jax in it")
    volume = parser.add_mutually_exclusive_group(required=True)
    volume.add_argument("--bucket", help="a Cloud Storage bucket, mounted at /data")
    volume.add_argument("--claim", help="a PersistentVolumeClaim that many pods may write, mounted at /data")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--service_account", default="", help="of Kubernetes; one that may write the bucket")
    parser.add_argument("--spot", action="store_true", help="on Spot capacity")
    parser.add_argument("--max_restarts", type=int, default=20, help="of the whole run, or of one member")
    parser.add_argument("--grace_s", type=int, default=120, help="from SIGTERM to SIGKILL: a save must fit")
    parser.add_argument("--members", type=int, default=0, help="a sweep of so many one-host runs")
    parser.add_argument("--parallelism", type=int, default=0, help="members that run at a time (all)")
    parser.add_argument("verb", nargs="+", metavar="-- VERB …", help="of sora-jax, with its arguments")
    return parser


def check(args: argparse.Namespace, part: Slice) -> None:
    """Raises LaunchError for settings that Kubernetes would refuse, or that would never start."""
    # Pods are called NAME-slice-JOB-POD, and a DNS label has at most 63 letters.
    longest = 63 - len(f"-slice-{args.slices - 1}-{part.hosts - 1}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", args.name) or len(args.name) > longest:
        raise LaunchError(
            f"--name '{args.name}' must be at most {longest} small letters, digits and dashes, a letter first"
        )
    for name, least in (("slices", 1), ("max_restarts", 0), ("grace_s", 0), ("members", 0), ("parallelism", 0)):
        if getattr(args, name) < least:
            raise LaunchError(f"--{name} is {getattr(args, name)}, but must be at least {least}")
    if args.members and part.hosts * args.slices > 1:
        raise LaunchError(
            f"--members needs a slice of one host, but {args.slices} x {args.tpu} have {part.hosts * args.slices}; "
            "start each larger member as a JobSet of its own"
        )
    workdir = option(args.verb, "--workdir")
    if workdir and not workdir.startswith(f"{MOUNT}/"):
        raise LaunchError(f"--workdir {workdir} would be lost with its pod; it must lie on the volume, under {MOUNT}/")


def option(words: list[str], name: str) -> str:
    """What `--name VALUE` or `--name=VALUE` says among the words, or nothing."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return ""


def shell_of(args: argparse.Namespace, part: Slice) -> list[str]:
    """The container's command: a shell that becomes the program, so that SIGTERM reaches it."""
    run = 'exec sora-jax "$@"'
    if args.members:
        run = 'exec sora-jax "${@//\\{task\\}/$JOB_COMPLETION_INDEX}"'
    elif part.hosts * args.slices > 1:
        run = f"export SORA_PROCESS_ID=$((SLICE_INDEX * HOSTS_PER_SLICE + JOB_COMPLETION_INDEX)); {run}"
    return ["bash", "-c", run, "sora-jax"]


def literal(words: list[str]) -> list[str]:
    """The words as they are: Kubernetes would expand $(NAME), and $$ stands for a dollar sign."""
    return [word.replace("$(", "$$(") for word in words]


def values(args: argparse.Namespace) -> dict[str, Any]:
    """What the templates name. Raises LaunchError."""
    part = parse_tpu(args.tpu)
    check(args, part)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": part.accelerator,
        "cloud.google.com/gke-tpu-topology": part.topology,
    }
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    claim = {"persistentVolumeClaim": {"claimName": args.claim}}
    fuse = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": args.bucket}}}
    return {
        **vars(args),
        "hosts": part.hosts,
        "chips": part.chips_per_host,
        "node_selector": selector,
        "command": literal(shell_of(args, part)),
        "arguments": literal(args.verb),
        "parallelism": args.parallelism or args.members,
        "port": PORT,
        "mounts": [{"name": "data", "mountPath": MOUNT}, {"name": "memory", "mountPath": "/dev/shm"}],
        "volumes": [
            {"name": "data", **(fuse if args.bucket else claim)},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def render(args: argparse.Namespace) -> str:
    """The manifest. Raises LaunchError, and jinja2's UndefinedError for a name in the template that has no value."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    template = environment.get_template("indexed_job.yaml" if args.members else "jobset.yaml")
    return template.render(values(args)).lstrip("\n")


def main(argv: list[str] | None = None) -> int:
    try:
        print(render(make_parser().parse_args(argv)), end="")
    except LaunchError as error:
        print(f"jobset.py: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
