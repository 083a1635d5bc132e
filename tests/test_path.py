"""The whole path through the command line on a tiny world: videos, shards, autoencoder, latents, DiT, samples, page.

Every command is the real one; only the models and the budgets are tiny.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipeline.caption_features import CaptionFeatures
from data_pipeline.errors import UserError
from data_pipeline.latents import WindowConfig
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import decode
from sora_jax.commands.encode import find_or_export
from sora_jax.commands.main import main
from sora_jax.models.codec import load_codec
from sora_jax.models.t5 import t5_definition
from sora_jax.models.t5_files import load_t5
from sora_jax.training.checkpoint import find_checkpoint, load_parts, saved_shapes
from sora_jax.training.metrics import read_metrics
from sora_jax.training.trained_codec import codec_to_measure
from tests.browser import check_page, open_page
from tests.sora_jax.models.published_t5 import describe, tensors, write

AUTOENCODER = (
    "--config.train.num_steps=6",
    "--config.train.batch_rows=8",
    "--config.train.eval_every=6",
    "--config.train.eval_batches=1",
    "--config.train.preview_every=6",
    "--config.data.crops=((9,24,24),(1,24,24))",
    "--config.data.weights=(0.5,0.5)",
    "--config.model.stages=({'space':1,'time':2,'width':8,'num_blocks':1},{'space':2,'time':2,'width':8,'num_blocks':1})",
)
DIT = (
    "--config.train.num_steps=60",
    "--config.train.batch_rows=8",
    "--config.train.eval_every=60",
    "--config.train.eval_batches=1",
    "--config.train.preview_every=60",
    "--config.train.checkpoint_every=5",
    "--config.train.log_every=1",
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.model.num_heads=2",
    "--config.preview.sampling.num_steps=2",
)


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with clips, an autoencoder's run, latents, a DiT's run and samples, made by the verbs in order."""
    d = tmp_path_factory.mktemp("path")
    configs = repository / "configs"
    assert run("data", "synth", "--world", "quickstart", "--clips", 120, "--seed", 3, "--out", d / "videos") == 0
    captions = d / "videos/captions.jsonl"
    assert run("data", "build", "--videos", d / "videos", "--captions", captions, "--out", d / "clips") == 0
    data, workdir = f"--config.data.path={d / 'clips'}", d / "autoencoder"
    assert (
        run("train", "--config", configs / "autoencoder_quickstart.py", "--workdir", workdir, data, *AUTOENCODER) == 0
    )
    assert run("encode", "--autoencoder", workdir, "--data", d / "clips", "--out", d / "latents") == 0
    assert train_dit(d, configs, d / "dit") == 0
    (d / "prompts.txt").write_text("a red circle moves left\n\na blue square moves up\n")
    options = ("--prompts", d / "prompts.txt", "--steps", 2, "--guidance", 2)
    assert run("sample", "--run", d / "dit", *options, "--out", d / "samples") == 0
    return d


def train_dit(d: Path, configs: Path, workdir: Path) -> int:
    config = configs / "dit_quickstart.py"
    return run("train", "--config", config, "--workdir", workdir, f"--config.data.path={d / 'latents'}", *DIT)


def test_latents_are_the_codecs_and_carry_every_caption(world):
    clips, latents, codec = (
        ShardReader(world / "clips"),
        ShardReader(world / "latents"),
        load_codec(world / "autoencoder"),
    )
    assert latents.manifest.metadata["autoencoder_fingerprint"] == codec.fingerprint
    record, clip = latents.read(0), clips.read(0)
    frames, _ = decode(clip.video)
    expected = codec.encode(frames[None])[0]
    np.testing.assert_allclose(record.latent_array().astype(np.float32), expected, rtol=1e-2, atol=1e-3)  # bfloat16
    assert [c.text for c in record.captions] == [c.text for c in clip.captions]


def test_an_autoencoder_is_measured_as_its_newest_checkpoint_is(world, tmp_path):
    """Its export may be older than the run."""
    run = tmp_path / "run"
    shutil.copytree(world / "autoencoder", run)
    older = json.loads((run / "export/autoencoder.json").read_text())["fingerprint"]
    codec = load_codec(run)
    changed = jax.tree.map(lambda x: x + 1, codec.params)
    dataclasses.replace(codec, params=changed).save(run / "export")
    exported, measured = load_codec(run), codec_to_measure(run)
    assert exported.fingerprint != older
    jax.tree.map(np.testing.assert_array_equal, measured.params, codec.params)
    jax.tree.map(np.testing.assert_array_equal, codec_to_measure(run / "export").params, changed)


def test_chunked_coding_equals_whole_coding(world):
    codec = load_codec(world / "autoencoder")
    video = np.random.default_rng(0).integers(0, 255, (1, 33, 16, 24, 3), np.uint8)
    latents = codec.encode(video)
    assert latents.shape == (1, 9, 2, 3, 16)
    np.testing.assert_allclose(codec.encode(video[:, :17]), latents[:, :5], atol=1e-5)
    assert codec.decode(latents).shape == video.shape


def test_samples_have_the_size_asked_for_and_do_not_depend_on_company(world, capsys):
    entries = [json.loads(line) for line in (world / "samples/samples.jsonl").read_text().splitlines()]
    assert [e["prompt"] for e in entries] == ["a red circle moves left", "a blue square moves up"]
    together, _ = decode(world / "samples" / entries[1]["file"])
    assert together.shape == (9, 32, 32, 3)
    options = ("--prompt", entries[1]["prompt"], "--seed", entries[1]["seed"], "--steps", 2, "--guidance", 2)
    assert run("sample", "--run", world / "dit", *options, "--out", world / "alone.mp4") == 0
    assert last_line(capsys)["frames"] == 9
    alone, _ = decode(world / "alone.mp4")
    assert np.max(np.abs(alone.astype(int) - together.astype(int))) <= 4  # one grey level may move through the codec


@pytest.mark.parametrize("ending, frames", [("png", 1), ("gif", 5), ("webm", 5), ("mp4", 1)])
def test_every_ending_and_a_portrait_size(world, ending, frames):
    out = world / f"one.{ending}"
    options = ("--prompt", "a green triangle", "--size", "24x40", "--frames", frames, "--steps", 1, "--guidance", 1)
    assert run("sample", "--run", world / "dit", *options, "--solver", "heun", "--out", out) == 0
    assert decode(out)[0].shape[1:] == (40, 24, 3)


def test_a_size_beyond_the_training_rows_is_sampled_with_a_warning(world, caplog):
    options = ("--prompt", "a red circle", "--size", "128x64", "--frames", 5, "--steps", 1, "--guidance", 1)
    assert run("sample", "--run", world / "dit", *options, "--out", world / "large.mp4") == 0
    assert decode(world / "large.mp4")[0].shape == (5, 64, 128, 3)
    assert "training rows held 96" in caplog.text


def test_a_run_that_saved_nothing_takes_a_corrected_config(world, repository, tmp_path, capsys):
    command = ("train", "--config", repository / "configs/dit_quickstart.py", "--workdir", tmp_path / "run")
    data, short = f"--config.data.path={world / 'latents'}", "--config.train.num_steps=1"
    assert run(*command, data, *DIT, "--config.optim.optimizer=adam") == 2
    assert "adamw" in capsys.readouterr().err
    assert run(*command, data, *DIT, short) == 0
    assert run(*command, data, *DIT, short, "--config.optim.b1=0.8") == 2  # now there is something to lose
    assert "config.optim.b1 was 0.9 and is 0.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, says",
    [
        ("--config.preview.num_frames=8", "nearest legal number is 9"),
        ("--config.data.row_tokens=4", "no clip fits"),
        ("--config.train.log_every=0", "at least 1"),
        ("--config.train.mesh={'data':3}", "multiply to"),
        ("--config.model.num_heads=5", "head width"),
        ("--config.flow.reference_tokens=0", "above 0"),
    ],
)
def test_bad_configs_fail_before_a_model_is_built(world, repository, tmp_path, capsys, override, says):
    command = ("train", "--config", repository / "configs/dit_quickstart.py", "--workdir", tmp_path / "run")
    assert run(*command, f"--config.data.path={world / 'latents'}", *DIT, override) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "options, says",
    [
        (("--size", "30x0"), "30x0 is no size"),
        (("--frames", "8"), "nearest legal number is 9"),
        (("--size", "big"), "WIDTHxHEIGHT"),
        (("--rows_per_batch", "0"), "at least 1"),
        (("--steps", "0"), "at least 1"),
        (("--step", "99"), "99"),
        (("--solver", "rk45"), "euler"),
    ],
)
def test_illegal_requests_are_one_clear_error(world, capsys, options, says):
    assert run("sample", "--run", world / "dit", "--prompt", "x", *options, "--out", world / "x.mp4") == 2
    assert says in capsys.readouterr().err


def test_latents_of_another_autoencoder_are_refused(world, tmp_path, capsys):
    codec = load_codec(world / "autoencoder")
    changed = jax.tree.map(lambda p: p + 1, codec.params)
    type(codec)(codec.config, changed, codec.latent_mean, codec.latent_std).save(tmp_path / "other")
    again = run("encode", "--autoencoder", tmp_path / "other", "--data", world / "clips", "--out", world / "latents")
    assert again == 2 and "another autoencoder fingerprint" in capsys.readouterr().err


def test_latents_of_one_scale_come_with_a_codec_of_their_own(world, tmp_path, capsys):
    sources = ("--autoencoder", world / "autoencoder", "--data", world / "clips")
    encode = ("encode", *sources, "--out", tmp_path / "latents")
    assert run(*encode, "--latent_scale", "all") == 0
    channelwise, scaled = load_codec(world / "autoencoder"), load_codec(tmp_path / "latents/autoencoder")
    assert np.ptp(channelwise.latent_std) > 0
    assert np.ptp(scaled.latent_std) == 0
    np.testing.assert_allclose(np.square(scaled.latent_std).sum(), np.square(channelwise.latent_std).sum(), rtol=1e-5)
    mine, theirs = (ShardReader(d / "latents").read(0).latent_array().astype(np.float32) for d in (tmp_path, world))
    np.testing.assert_array_equal(mine, theirs)  # stored as the encoder makes them; training divides
    assert run(*encode) == 2 and "--latent_scale" in capsys.readouterr().err


def test_a_damaged_export_is_refused(world, tmp_path):
    codec = load_codec(world / "autoencoder")
    codec.save(tmp_path / "export")
    header = json.loads((tmp_path / "export/autoencoder.json").read_text())
    header["latent_std"][0] *= 2
    (tmp_path / "export/autoencoder.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="fingerprint"):
        load_codec(tmp_path / "export")
    for damaged in ("[]", "{}", json.dumps({k: v for k, v in header.items() if k != "config"})):
        (tmp_path / "export/autoencoder.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_codec(tmp_path / "export")


def test_an_export_of_other_weights_is_made_again(world, tmp_path):
    """Such as those of a run that was deleted and trained again to the same step, or a damaged one."""
    run, reader = tmp_path / "run", ShardReader(world / "clips", kind="clip")
    shutil.copytree(world / "autoencoder", run)
    whole = load_codec(run)
    assert find_or_export(run, reader, WindowConfig()).fingerprint == whole.fingerprint
    dataclasses.replace(whole, params=jax.tree.map(lambda x: x + 1, whole.params)).save(run / "export")
    assert find_or_export(run, reader, WindowConfig()).fingerprint == whole.fingerprint
    (run / "export/weights.safetensors").write_bytes(b"")
    assert find_or_export(run, reader, WindowConfig()).fingerprint == whole.fingerprint


@pytest.fixture(scope="module")
def page(world) -> Path:
    """The page of the world's run, with the probes' verdicts."""
    out = world / "evaluation.json"
    options = ("--generated", world / "samples", "--real", world / "clips", "--autoencoder", world / "autoencoder")
    assert run("evaluate", "--metric", "probes", *options, "--out", out) == 0
    runs = ("--run", world / "dit", "--autoencoder", world / "autoencoder", "--samples", world / "samples")
    assert run("report", *runs, "--evaluation", out, "--out", world / "index.html") == 0
    return world / "index.html"


def test_the_page_stands_alone_and_shows_the_probes(page):
    assert json.loads(page.with_name("evaluation.json").read_text())["scores"]["colour"]["generated"]["total"] == 2
    text = page.read_text()
    assert "a red circle moves left" in text and "data:video/mp4" in text and 'src="http' not in text


@pytest.mark.chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_lays_the_page_out_without_a_sideways_scroll(page, tmp_path, width, dark):
    """Chromium plays the inlined videos, asks for nothing, and no element is wider than the window."""
    found = open_page(page, tmp_path, width, dark)
    check_page(found, width, dark)
    assert len(found["videos"]) > 2 and {across for _, across, _ in found["videos"]} == {32}


@pytest.mark.long
def test_killed_at_random_the_generators_run_ends_bitwise_the_same(world, repository):
    """Three kills (-9) of a real process, while it computes or saves; the reference run was never interrupted."""
    workdir = world / "killed"
    paths = f"--config.data.path={world / 'latents'}"
    command = [sys.executable, "-m", "sora_jax.commands.main", "train", "--config", "configs/dit_quickstart.py"]
    command += ["--workdir", str(workdir), paths, *DIT]
    rng, kills, finished = random.Random(0), 0, False
    while not finished:
        process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = reached(workdir)
        while process.poll() is None and kills < 3:
            if reached(workdir) >= before + 2:  # some way into this run: strike at any moment of the next steps
                time.sleep(rng.uniform(0.0, 0.2))
                os.kill(process.pid, signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.02)
        finished = process.wait() == 0
    assert kills == 3
    for part in ("params", "ema", "state"):  # `state` holds the optimizer's
        ours, reference = whole(workdir, part), whole(world / "dit", part)
        assert len(ours) == len(reference) > 0 and all(map(np.array_equal, ours, reference))


def whole(run_dir: Path, part: str) -> list[np.ndarray]:
    """The arrays of one part of a run's newest checkpoint."""
    path, sharding = find_checkpoint(run_dir), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: x.update(sharding=sharding), saved_shapes(path, part))
    return [np.asarray(x) for x in jax.tree.leaves(load_parts(path, {part: shapes}))]


def reached(workdir: Path) -> int:
    """The newest step in the run's metrics."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines if line.endswith("}")), default=0)


def test_sampling_with_a_runs_own_parameters_is_measured(world, capsys):
    options = ("--segments", 2, "--steps", 1, "--guidance", 1, "--rounds", 1, "--rows_per_batch", 1)
    assert run("bench", "sample", "--run", world / "dit", *options) == 0
    result = last_line(capsys)
    assert result["width"] == 32 and result["is_finite"] and result["seconds_per_sample"] == result["batch_s"] / 2
    assert run("bench", "sample", "--run", world / "autoencoder", *options) == 2
    assert "no generator's run" in capsys.readouterr().err


FROZEN_TEXT = """
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="", row_tokens=96, row_text=64, row_segments=4, patch_size=(1, 1, 1), reference_latent_rate=2.0,
        text_features=False,
    )
    config.model = dict(width=16, depth=1, num_heads=1, text_encoder=dict(path="", dtype="float32"))
    config.optim = dict(optimizer="adamw")
    config.train = dict(
        task="diffusion", num_steps=2, batch_rows=8, eval_every=2, eval_batches=1, preview_every=2, mesh={"fsdp": 8}
    )
    config.preview = dict(
        prompts=("a red circle moves left",), sampling=dict(num_steps=2, guidance=3.0, solver="euler")
    )
    return config
"""


@pytest.mark.long
def test_cached_text_features_train_what_the_encoder_in_the_step_does(world, tmp_path, capsys, caplog):
    """Encoded beside finished latents, read by training with previews, and sampled from; storage is said first."""
    config = describe("umt5", vocab_size=9_000)
    folder, latents = write(tmp_path / "umt5", config, tensors(config)), tmp_path / "latents"
    shutil.copy(world / "latents/tokenizer.model", folder / "spiece.model")
    shutil.copytree(world / "latents", latents)
    (tmp_path / "config.py").write_text(FROZEN_TEXT)
    encode = ("encode", "--autoencoder", world / "autoencoder", "--data", world / "clips", "--out", latents)
    caplog.set_level("INFO", "sora_jax")
    assert run(*encode, "--text_encoder", folder) == 0, capsys.readouterr().err
    made = last_line(capsys)
    assert made["text_encoder_fingerprint"] == load_t5(folder).fingerprint and made["text_bytes"] > 0
    said = [line for line in caplog.messages if "text features" in line]
    assert "at most" in said[0] and f"{made['text_entries']} different captions" in said[1]
    reader = ShardReader(latents)
    cached_features, weights = CaptionFeatures(latents, reader.manifest, reader.index, 64), load_t5(folder, "bfloat16")
    encoder = jax.jit(nnx.merge(t5_definition(weights.config), weights.params).__call__)
    tokenizer = Tokenizer.load(folder / "spiece.model")
    for text in ("", reader.read(0).captions[0].text):
        ids = np.asarray([tokenizer.caption_ids(text)], np.int32)
        alone = np.asarray(encoder(ids, np.ones_like(ids), np.arange(ids.size)[None]), np.float32)[0]
        np.testing.assert_allclose(cached_features.read(text).astype(np.float32), alone, rtol=3e-2, atol=3e-2)
    assert run("encode", "--text_encoder", folder, "--out", latents) == 0 and last_line(capsys)["text_bytes"]
    assert run("encode", "--out", latents) == 2 and "needs --autoencoder and --data" in capsys.readouterr().err
    options = (f"--config.data.path={latents}", f"--config.model.text_encoder.path={folder}")
    options = (*options, "--config.model.text_encoder.dtype=bfloat16")
    train = ("train", "--config", tmp_path / "config.py", *options)
    cached = "--config.data.text_features=True"
    assert run(*train, "--workdir", tmp_path / "cached", cached) == 0, capsys.readouterr().err
    assert run(*train, "--workdir", tmp_path / "in_step") == 0, capsys.readouterr().err
    ours, theirs = (read_metrics(tmp_path / name) for name in ("cached", "in_step"))
    for kind in ("train", "eval"):
        losses = [[row["loss"] for row in rows if row["kind"] == kind] for rows in (ours, theirs)]
        np.testing.assert_allclose(*losses, rtol=2e-3)  # in bfloat16 the encoder's features differ with their row
    assert len(list((tmp_path / "cached" / "previews").iterdir())) == 1
    prompt = ("--prompt", "a red circle moves left", "--steps", 2, "--out", tmp_path / "a.gif")
    assert run("sample", "--run", tmp_path / "cached", *prompt) == 0, capsys.readouterr().err
    bare = ("--config.preview.prompts=()", "--config.train.num_steps=3", "--workdir", tmp_path / "bare", cached)
    (folder / "model.safetensors").unlink()
    assert run(*train, *bare) == 0, f"without previews no encoder is needed: {capsys.readouterr().err}"
    write(folder, config, tensors(config, seed=1))
    assert run(*train, "--workdir", tmp_path / "other", cached) == 2
    assert "name the encoder that made them" in capsys.readouterr().err


def test_a_frozen_text_encoder_takes_the_place_of_the_trained_one(world, tmp_path, capsys):
    """Trained with, evaluated, previewed, resumed and sampled from; another encoder or tokenizer is refused."""
    config = describe("umt5", vocab_size=9_000)
    folder, run_dir = write(tmp_path / "umt5", config, tensors(config)), tmp_path / "run"
    shutil.copy(world / "latents/tokenizer.model", folder / "spiece.model")
    (tmp_path / "config.py").write_text(FROZEN_TEXT)
    options = (f"--config.data.path={world / 'latents'}", f"--config.model.text_encoder.path={folder}")
    train = ("train", "--config", tmp_path / "config.py", "--workdir", run_dir, *options)
    assert run(*train) == 0, capsys.readouterr().err
    off = ("--config.train.eval_every=0", "--config.train.preview_every=0")
    assert run(*train, "--config.train.num_steps=3", *off) == 0, capsys.readouterr().err
    assert json.loads((run_dir / "run.json").read_text())["fingerprints"]["text_encoder"] == load_t5(folder).fingerprint
    names = saved_shapes(find_checkpoint(run_dir), "params")["dit"]
    assert "text_in" in names and "text_encoder" not in names, "a frozen network is not in the checkpoint"
    assert len(list((run_dir / "previews").iterdir())) == 1
    prompt = ("--prompt", "a red circle moves left", "--negative_prompt", "a blue square")
    prompt = (*prompt, "--steps", 2, "--out", tmp_path / "a.gif")
    sample = ("sample", "--run", run_dir, *prompt)
    moved = folder.rename(tmp_path / "moved")
    assert run(*sample) == 2 and "holds no text encoder" in capsys.readouterr().err
    assert run(*sample, "--text_encoder", moved) == 0, capsys.readouterr().err
    write(moved, config, tensors(config, seed=1))
    assert run(*sample, "--text_encoder", moved) == 2 and "but the run was trained with" in capsys.readouterr().err
    with (moved / "spiece.model").open("ab") as file:
        file.write(b"\x1a\x00")  # an empty field: another file, the same model
    assert run(*sample, "--text_encoder", moved) == 2 and "was tokenized with" in capsys.readouterr().err
