"""A run's checkpoints from outside: listed, verified byte by byte, pruned, exported and imported."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.flax import load_file, save_file

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.training.checkpoint import committed_steps, find_checkpoint, load_params
from sora_jax.training.interchange import HEADER, HEADER_DIGEST, export_run, import_run
from sora_jax.training.inventory import list_checkpoints, prune_run, verify_run
from sora_jax.training.manifest import DIGESTS, METADATA, list_files
from sora_jax.training.retention import Retention
from tests.sora_jax.training.saved_states import abstract_of, biggest_file, open_checkpoints, save_all, state_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the steps 1, 2 and 3, and metrics."""
    run = tmp_path_factory.mktemp("saved") / "run"
    save_all(run, [1, 2, 3], size=16)
    rows = [{"step": s, "kind": kind, "loss": s / 10} for s in (1, 2, 3) for kind in ("train", "eval")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {"command": "sora-jax train --config c.py --workdir run"}
    (run / "run.json").write_text(json.dumps({"environment": environment}))
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "run")


def test_list_shows_what_each_step_is(run, capsys):
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "4.saving")
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "3.aside.17")
    assert main(["checkpoint", "list", "--run", str(run)]) == 0
    entries = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(e["step"], e["status"]) for e in entries] == [
        (1, "committed"),
        (2, "committed"),
        (3, "committed"),
        (3, "set aside"),
        (4, "not committed"),
    ]
    assert (entries[1]["loss"], entries[1]["held_out"], entries[1]["tier"]) == (0.2, {"loss": 0.2}, "run")
    files = [p.stat().st_size for p in (run / "checkpoints" / "2").rglob("*") if p.is_file() and p.name != DIGESTS]
    assert entries[1]["size_bytes"] == sum(files)
    with pytest.raises(UserError, match="no run at"):
        list_checkpoints(run / "nowhere")


def test_every_flipped_byte_and_missing_file_is_found(run):
    assert verify_run(run)["good"] == [{"step": s, "tier": "run"} for s in (1, 2, 3)]
    folder = run / "checkpoints" / "2"
    for name in [*list_files(folder), DIGESTS]:
        content = (folder / name).read_bytes()
        for position in {0, len(content) // 2} if content else ():
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            (folder / name).write_bytes(damaged)
            with pytest.raises(UserError, match=name):
                verify_run(run, 2)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"lacks its (file|manifest) {name}"):
            verify_run(run, 2)
        (folder / name).write_bytes(content)
    (folder / "stray").write_text("?")
    with pytest.raises(UserError, match=r"has a file stray that was not saved with it"):
        verify_run(run)
    with open_checkpoints(run) as checkpoints:  # a file of somebody else changes no number
        assert checkpoints.restore(2, abstract_of(state_of(16)))[0].step == 2


def test_verify_names_both_digests_and_the_command_that_goes_on(run, capsys):
    victim = biggest_file(run / "checkpoints" / "3" / "params")
    content = bytearray(victim.read_bytes())
    content[7] ^= 1
    victim.write_bytes(content)
    assert main(["checkpoint", "verify", "--run", str(run)]) == 2
    words = capsys.readouterr().err
    assert "whose sha256 is" in words and "was written" in words
    assert words.rstrip().endswith(
        "newest good one is step 2; to go on from there: sora-jax train --config c.py --workdir run --from_step 2"
    )
    shutil.rmtree(run / "checkpoints" / "3")
    assert main(["checkpoint", "verify", "--run", str(run), "--step", "2"]) == 0
    with pytest.raises(UserError, match=r"no checkpoint 3 to verify; committed are: 1, 2"):
        verify_run(run, 3)


def test_a_step_of_an_older_version_is_read_and_counts_as_unverified(run):
    folder = run / "checkpoints" / "3"
    digests = json.loads((folder / DIGESTS).read_text())["files"]
    about = json.loads((folder / METADATA).read_text())
    del about["custom_metadata"]["format"]
    (folder / METADATA).write_text(json.dumps(about))
    digests.pop(METADATA)
    (folder / DIGESTS).write_text(json.dumps({name: file["sha256"] for name, file in digests.items()}))
    load_params(run)
    with pytest.raises(UserError, match=f"{METADATA} that was not saved with it"):
        verify_run(run)
    (folder / DIGESTS).unlink()
    load_params(run)
    assert verify_run(run)["unverified"] == [{"step": 3, "tier": "run"}]


def test_prune_keeps_what_is_asked_and_the_newest_good_one(run):
    directory = run / "checkpoints"
    shutil.copytree(directory / "3", directory / "2.aside.17")
    biggest_file(directory / "3").unlink()
    planned = prune_run(run, Retention(1, 0, "loss"), aside=True, dry_run=True)
    assert planned["deleted"] == [str(directory / "2.aside.17")] and planned["bytes"] > 0
    assert len(planned["kept"]) == 3  # 1 is the best, 2 the newest good one, 3 the last
    prune_run(run, Retention(1), aside=True)
    assert sorted(p.name for p in directory.iterdir()) == ["2", "3"]
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no held-out evaluation to find the best by 'loss'"):
        prune_run(run, Retention(1, 0, "loss"))


@pytest.mark.parametrize("which", ["ema", "params"])
def test_an_export_comes_back_bitwise(run, tmp_path, which, capsys):
    file, copy = tmp_path / "x" / "model.safetensors", tmp_path / "copy"
    raw = ["--raw"] if which == "params" else []
    assert main(["checkpoint", "export", "--run", str(run), "--out", str(file), "--step", "2", *raw]) == 0
    assert main(["checkpoint", "import", "--file", str(file), "--out", str(copy)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 2
    there, here = load_params(run, 2, ema=which == "ema"), load_params(copy)
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    assert jax.tree.structure(there.params) == jax.tree.structure(here.params)
    assert (there.config, there.fingerprints, there.step) == (here.config, here.fingerprints, here.step)
    assert verify_run(copy)["good"] == [{"step": 2, "tier": "run"}]
    assert find_checkpoint(copy).name == "2"
    with open_checkpoints(copy) as checkpoints, pytest.raises(UserError, match=r"no optimizer .*--init_from .*copy@2$"):
        checkpoints.restore(2, abstract_of(state_of(16)))
    assert main(["checkpoint", "import", "--file", str(file), "--out", str(run)]) == 2
    assert committed_steps(run / "checkpoints") == [1, 2, 3]


def test_a_damaged_export_is_refused(run, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    assert main(["checkpoint", "export", "--run", str(run), "--out", str(file)]) == 0
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert main(["checkpoint", "import", "--file", str(file), "--out", str(tmp_path / "copy")]) == 2
    assert "have sha256" in capsys.readouterr().err
    file.write_bytes(content[:-5])
    assert main(["checkpoint", "import", "--file", str(file), "--out", str(tmp_path / "copy")]) == 2
    assert "is no whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def with_header(file, out, text, digest=None):
    """`file` with another header of ours, and the digest of that one unless another is given."""
    digest = hashlib.sha256(text.encode()).hexdigest() if digest is None else digest
    save_file(load_file(file), out, metadata={HEADER: text, HEADER_DIGEST: digest})
    return out


def test_a_flipped_bit_anywhere_in_an_exports_header_is_refused(run, tmp_path):
    file, damaged = tmp_path / "model.safetensors", tmp_path / "damaged.safetensors"
    export_run(run, file)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for position in range(0, end, 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        damaged.write_bytes(flipped)
        with pytest.raises(UserError, match="export"):
            import_run(damaged, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_export_whose_header_was_changed_is_refused(run, tmp_path, capsys):
    file, damaged = tmp_path / "model.safetensors", tmp_path / "damaged.safetensors"
    export_run(run, file)
    with safe_open(file, framework="flax") as opened:
        text, written = (opened.metadata()[name] for name in (HEADER, HEADER_DIGEST))
    about = json.loads(text)
    with_header(file, damaged, json.dumps({**about, "step": 7}), written)
    assert main(["checkpoint", "import", "--file", str(damaged), "--out", str(tmp_path / "copy")]) == 2
    assert f"header of {damaged} has sha256" in capsys.readouterr().err
    changed = [(json.dumps({k: v for k, v in about.items() if k != name}), name) for name in about]
    changed += [("{", "another program"), ("[]", "another program"), ("null", "another program")]
    changed += [(json.dumps({**about, "step": wrong}), "step") for wrong in (-1, "2", None)]
    changed += [(json.dumps({**about, "paths": {**about["paths"], "net/bias": wrong}}), "path of") for wrong in ([], 3)]
    changed += [(json.dumps({**about, "paths": {"net/bias": ["net", "bias"]}}), "1 paths of 2 tensors")]
    for text, says in changed:
        with pytest.raises(UserError, match=says):
            import_run(with_header(file, damaged, text), tmp_path / "copy")
    save_file(load_file(file), damaged, metadata={HEADER: text})
    with pytest.raises(UserError, match=f"no '{HEADER_DIGEST}'"):
        import_run(damaged, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
