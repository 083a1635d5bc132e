"""Manifests for GKE: rendered, and held against the schemas of Kubernetes and of JobSet."""

import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
JOBSET_SCHEMA = json.loads(Path(__file__).with_name("jobset_v1alpha2.json").read_text())
VERB = (
    "train",
    "--config",
    "configs/dit_quickstart.py",
    "--workdir",
    "/data/runs/a b",
    "--config.x={'y': \"$(Z) 'q'\"}",
)
RUN = {"name": "dit-xl", "tpu": "v5p:2x2x2", "image": "europe-docker.pkg.dev/p/r/sora:1", "bucket": "runs"}


def load_program() -> ModuleType:
    """`launch/jobset.py`, which is a program beside shell scripts and no package."""
    spec = importlib.util.spec_from_file_location("jobset", REPOSITORY / "launch/jobset.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROGRAM = load_program()


def arguments_of(*words: str, **options: object) -> list[str]:
    """RUN's options and more, and the verb: an option that is None is left out, True stands for a bare flag."""
    flags = []
    for name, value in {**RUN, **options}.items():
        flags += [] if value is None else [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return [*flags, "--", *(words or VERB)]


def manifest(*words: str, **options: object) -> dict:
    return yaml.safe_load(PROGRAM.render(PROGRAM.make_parser().parse_args(arguments_of(*words, **options))))


def refusal(capsys: pytest.CaptureFixture[str], *words: str, **options: object) -> str:
    """The one line of an error that is the user's."""
    assert PROGRAM.main(arguments_of(*words, **options)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def check_job(job: dict) -> None:
    """Raises ValidationError for a field that Kubernetes does not know, or a wrong value."""
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def check_jobset(found: dict) -> dict:
    """The pod of a JobSet that holds to its schema, in Jobs that hold to theirs."""
    jsonschema.validate(found, JOBSET_SCHEMA)
    (replicated,) = found["spec"]["replicatedJobs"]
    check_job({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]})
    assert found["spec"]["coordinator"]["replicatedJob"] == replicated["name"]
    return replicated["template"]["spec"]["template"]["spec"]


SLICES = [
    # topology, slices: node label, hosts of a slice, chips of a host
    ("v5p:2x2x1", 1, "tpu-v5p-slice", 1, 4),
    ("v5p:2x2x2", 1, "tpu-v5p-slice", 2, 4),
    ("v5p:4x4x8", 3, "tpu-v5p-slice", 32, 4),
    ("v4:2x2x4", 1, "tpu-v4-podslice", 4, 4),
    ("v5e:4x4", 2, "tpu-v5-lite-podslice", 4, 4),
    ("v6e:1x1", 1, "tpu-v6e-slice", 1, 1),
    ("v6e:16x16", 1, "tpu-v6e-slice", 64, 4),
    ("tpu7x:4x4x4", 1, "tpu7x", 16, 4),
]


@pytest.mark.parametrize("tpu, slices, label, hosts, chips", SLICES)
def test_a_jobset_has_one_pod_a_host_and_asks_for_its_chips(tpu, slices, label, hosts, chips):
    found = manifest(tpu=tpu, slices=slices)
    pod = check_jobset(found)
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["completions"], job["parallelism"]) == (slices, hosts, hosts)
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    sides = [int(side) for side in tpu.split(":")[1].split("x")]
    assert math.prod(sides) == hosts * chips
    topology = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": tpu.split(":")[1]}
    assert pod["nodeSelector"] == topology
    exclusive = found["metadata"].get("annotations", {}).get("alpha.jobset.sigs.k8s.io/exclusive-topology")
    assert exclusive == ("cloud.google.com/gke-nodepool" if hosts > 1 else None)
    names = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert names.get("SORA_NUM_PROCESSES") == (str(hosts * slices) if hosts * slices > 1 else None)


def started(container: dict, **environment: str) -> tuple[list[str], str]:
    """The arguments and process id that the container's shell hands to sora-jax, by running it."""
    unescaped = [word.replace("$$", "$") for word in container["command"]]
    assert unescaped[:2] == ["bash", "-c"]
    script = unescaped[2].replace("exec sora-jax", "exec_sora_jax")
    show = 'exec_sora_jax() { printf "%s\\0" "$SORA_PROCESS_ID" "$@"; }\n'
    words = [word.replace("$$", "$") for word in container["args"]]
    done = subprocess.run(
        ["bash", "-c", show + script, *unescaped[3:], *words], env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    number, *arguments = done.stdout.split("\0")[:-1]
    return arguments, number


@pytest.mark.parametrize("slice_index, pod_index, number", [(0, 0, "0"), (0, 1, "1"), (1, 0, "2"), (2, 1, "5")])
def test_every_pod_gets_its_process_number_and_the_words_as_they_were(slice_index, pod_index, number):
    (container,) = check_jobset(manifest(slices=3))["containers"]
    variables = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    indices = {"SLICE_INDEX": str(slice_index), "JOB_COMPLETION_INDEX": str(pod_index)}
    arguments, found = started(container, HOSTS_PER_SLICE=variables["HOSTS_PER_SLICE"], **indices)
    assert (found, tuple(arguments)) == (number, VERB)


def test_a_sweep_is_an_indexed_job_whose_members_fail_alone():
    words = ("train", "--workdir", "/data/runs/{task}", "--config.train.seed={task}")
    found = manifest(*words, tpu="v6e:2x2", members=6, parallelism=2)
    check_job(found)
    spec = found["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (6, 2, "Indexed")
    actions = [
        (rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert actions == [("FailIndex", [2]), ("Ignore", [75]), ("Ignore", None)]
    (container,) = spec["template"]["spec"]["containers"]
    arguments, _ = started(container, JOB_COMPLETION_INDEX="4")
    assert arguments == ["train", "--workdir", "/data/runs/4", "--config.train.seed=4"]


def test_volumes_accounts_and_spot():
    pod = check_jobset(manifest(spot=True, service_account="trainer", grace_s=30, max_restarts=7))
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert (pod["serviceAccountName"], pod["terminationGracePeriodSeconds"]) == ("trainer", 30)
    assert pod["volumes"][0]["csi"]["volumeAttributes"] == {"bucketName": "runs"}
    pod = check_jobset(manifest(bucket=None, claim="disk"))
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}


@pytest.mark.parametrize(
    "options, says",
    [
        ({"tpu": "v5p:2x2"}, "topologies of 3 numbers, such as v5p:2x2x2"),
        ({"tpu": "v5p:2x2x3"}, "2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4"),
        ({"tpu": "v5p:8x4x4"}, "multiples of 4 that do not fall"),
        ({"tpu": "v6e:4x2"}, "'4x2' is none of v6e's topologies: 1x1, 2x2, 2x4"),
        ({"tpu": "v6e:2x2x2"}, "topologies of 2 numbers, such as v6e:4x4"),
        ({"tpu": "v5p:16x24x28"}, "has 10752 chips, but a slice of v5p has at most 8960"),
        ({"tpu": "h100:8"}, "'h100' is none of v4, v5e, v5p, v6e, tpu7x"),
        ({"slices": 0}, "--slices is 0, but must be at least 1"),
        ({"name": "Dit_XL"}, "--name 'Dit_XL' must be at most 53 small letters"),
        ({"name": "x" * 54}, "at most 53"),
        ({"members": 4}, "1 x v5p:2x2x2 have 2"),
    ],
)
def test_what_would_never_start_is_one_clear_error(capsys, options, says):
    assert says in refusal(capsys, **options)


def test_a_run_directory_inside_the_pod_is_refused(capsys):
    assert "runs/x would be lost with its pod" in refusal(capsys, "train", "--workdir=runs/x")


def test_the_program_prints_a_manifest():
    command = [sys.executable, str(REPOSITORY / "launch/jobset.py"), *arguments_of()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert yaml.safe_load(done.stdout) == manifest()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda m: m["spec"].update(maxRestarts=3), "maxRestarts"),
        (lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"), "Restart"),
        (lambda m: m["spec"]["replicatedJobs"][0].update(name="Slice_1"), "Slice_1"),
        (lambda m: m["spec"]["replicatedJobs"][0]["template"]["spec"].update(completion=2), "completion"),
        (lambda m: _pod(m)["containers"][0].update(volumemounts=[]), "volumemounts"),
    ],
)
def test_the_schemas_find_a_wrong_field(change, says):
    found = manifest()
    change(found)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match=re.escape(says)):
        check_jobset(found)


def _pod(found: dict) -> dict:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


XPK = {"NAME": "dit-xl", "CLUSTER": "c", "ZONE": "us-east5-a", "PROJECT": "p", "TPU": "v5p-16", "IMAGE": "i:1"}


def xpk(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(REPOSITORY / "launch/xpk.sh"), *(words or VERB)]
    settings = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=20, check=False)


def test_xpks_command_survives_two_shells():
    done = xpk(**XPK, SLICES="2", XPK_FLAGS="--spot --priority=high")
    words = shlex.split(done.stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:] if "=" in word)
    assert (flags["tpu-type"], flags["num-slices"], flags["priority"]) == ("v5p-16", "2", "high") and "--spot" in words
    assert {"1", "3", "75", "76"} == set(flags["restart-on-exit-codes"].split(","))
    assert tuple(shlex.split(flags["command"])) == ("exec", "sora-jax", *VERB)


def test_xpk_refuses_a_run_directory_that_dies_with_its_pod():
    words = ("train", "--workdir", "/runs/x")
    done = xpk(*words, **XPK)
    assert done.returncode == 2 and "--workdir /runs/x would be lost with its machine" in done.stderr
    assert "under /data/" in done.stderr
    assert xpk(*words, **XPK, MOUNT="/runs").returncode == 0


def test_xpk_names_every_setting_that_is_missing():
    done = xpk(NAME="x", ZONE="z")
    assert done.returncode == 2 and "set CLUSTER PROJECT TPU IMAGE in the environment" in done.stderr
