"""What a sample can be asked for, before a network is loaded."""

import subprocess
import sys

import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion.generation import PreviewConfig
from sora_jax.generation.options import SampleOptions, changed


def test_what_is_left_open_is_the_runs_preview():
    open_one = SampleOptions("a", size="64x48", fps=12.0, seed=3)
    request = open_one.resolved(PreviewConfig(num_frames=17, width=80)).request()
    assert (request.width, request.height, request.num_frames, request.fps, request.seed) == (64, 48, 17, 12.0, 3)
    assert SampleOptions("a").resolved(PreviewConfig(width=80)).size == (80, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "64"}, "--size is '64', but must be WIDTHxHEIGHT"),
        ({"size": "200000x200000"}, "200000x200000"),
        ({"size": "640x480", "frames": 10**7}, "10000000"),
        ({"seed": 2**31}, "--seed is 2147483648"),
        ({"steps": 0}, "steps is 0"),
        ({"frame": 9}, "no option 'frame'; did you mean frames"),
    ],
)
def test_what_cannot_be_sampled_is_said_at_once(options, message):
    with pytest.raises(UserError, match=message):
        changed(SampleOptions("a"), **options)


def test_importing_the_package_imports_no_accelerator_stack():
    code = "import sys, sora_jax; assert 'jax' not in sys.modules and 'Generator' in sora_jax.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
