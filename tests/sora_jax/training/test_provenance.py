"""What a run says of its code and environment."""

import subprocess

import pytest

from sora_jax.training.provenance import uncommitted_changes, variables
from sora_jax.training.run_directory import PATCH, open_run


def git(root, *words) -> None:
    author = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    subprocess.run(["git", "-C", str(root), *author, *words], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path):
    """A working tree with one committed file."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "code.py").write_text("a = 1\n")
    git(root, "init")
    git(root, "add", "code.py")
    git(root, "commit", "-m", "x")
    return root


def test_a_patch_makes_the_committed_code_what_ran(tree, tmp_path):
    assert uncommitted_changes(tree) == uncommitted_changes(tmp_path) == b""
    git(tmp_path, "clone", str(tree), "clone")
    (tree / "code.py").write_text("a = 2\n")
    (tree / "new.py").write_text("b = 3\n")
    patch = uncommitted_changes(tree)
    assert patch.startswith(b"# not in git: new.py\n")
    (tmp_path / "x.patch").write_bytes(patch)
    git(tmp_path / "clone", "apply", str(tmp_path / "x.patch"))
    assert (tmp_path / "clone" / "code.py").read_text() == "a = 2\n"
    (tree / "code.py").write_text("a = 3\n" * 1000)
    cut = uncommitted_changes(tree, max_bytes=500)
    assert len(cut) < 600 and cut.splitlines()[-1].startswith(b"# cut after 500 of ")


def test_a_run_keeps_the_patch_of_its_newest_start(tmp_path):
    (tmp_path / PATCH).write_text("of an earlier start")
    open_run(tmp_path, {"config": {}, "fingerprints": {}}, has_checkpoint=False)
    assert (tmp_path / PATCH).exists(), "an import says nothing of the code"
    open_run(tmp_path, {"config": {}, "fingerprints": {}, "environment": {}}, has_checkpoint=False)
    patch = (tmp_path / PATCH).read_bytes() if (tmp_path / PATCH).exists() else b""
    assert patch == uncommitted_changes()


def test_only_variables_that_are_known_to_matter_are_kept():
    kept = {"XLA_FLAGS": "1", "JAX_PLATFORMS": "cpu", "NCCL_DEBUG": "INFO", "SORA_PROCESS_ID": "0", "SLURM_JOB_ID": "7"}
    assert variables({**kept, "WANDB_API_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "SLURM_JWT": "x"}) == kept
