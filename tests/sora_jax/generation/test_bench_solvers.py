"""`sora-jax bench solvers` on a run of random weights: the reference is at no distance to itself, and there is a
picture."""

import json

import pytest
from PIL import Image

from sora_jax.commands.main import main


def test_distances_are_those_to_the_reference(random_run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red ball\nsomething blue\n")
    command = ["bench", "solvers", "--run", str(random_run), "--prompts", str(tmp_path / "prompts.txt")]
    command += ["--out", str(tmp_path), "--calls", "4,16", "--guidance", "2", "--reference_steps", "16"]
    assert main([*command, "--solvers", "euler,midpoint"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads((tmp_path / "solvers.json").read_text()) and result["samples"] == 2
    (curves,) = result["curves"]
    points = {(p["solver"], p["calls"]): p for p in curves["points"]}
    assert [(*name, p["steps"]) for name, p in points.items()] == [
        ("euler", 4, 4),
        ("euler", 16, 16),
        ("midpoint", 4, 2),
        ("midpoint", 16, 8),
    ]
    assert points["euler", 16]["distance"] == 0.0  # it is the reference
    assert all(p["distance"] > 0 for name, p in points.items() if name != ("euler", 16))
    assert curves["reference_error"] > 0
    with Image.open(tmp_path / "solvers.png") as image:
        assert image.width > 500 and len(image.convert("L").getcolors()) > 10


@pytest.mark.parametrize(
    "options, message",
    [
        (("--calls", "a"), "--calls is 'a', but must be numbers"),
        (("--calls", "0"), "must all be at least 1"),
        (("--solvers", "rk45"), "a solver is 'rk45', which is none of dpm++, euler"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, message, random_run, tmp_path, capsys):
    assert main(["bench", "solvers", "--run", str(random_run), "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
