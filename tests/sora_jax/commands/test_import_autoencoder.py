"""A published autoencoder through the command line: imported, clips encoded, a generator trained and sampled."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.shards import ShardReader
from data_pipeline.video_io import decode
from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.models.codec import load_codec
from sora_jax.models.wan import WanConfig
from sora_jax.objectives.diffusion import prepare
from tests.data_pipeline.conftest import write_clips
from tests.sora_jax.models.published_wan import describe, tensors, write

CONFIG = WanConfig(base_width=8, widths=(1, 1, 1, 2), num_blocks=1)
DIT = (
    "--config.train.num_steps=1",
    "--config.train.batch_rows=8",
    "--config.train.eval_every=0",
    "--config.train.preview_every=0",
    "--config.preview.prompts=()",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
)


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights, their export, clips, and latents."""
    d = tmp_path_factory.mktemp("imported")
    published = write(d / "vae", describe(CONFIG), tensors(CONFIG))
    assert run("checkpoint", "import-autoencoder", "--file", published, "--out", d / "wan") == 0
    write_clips(d / "clips", [(5, 16, 24)] * 4)
    assert run(*encode(d / "wan", d)) == 0
    return d


def overrides(d: Path) -> list[str]:
    return [f"--config.data.path={d / 'latents'}", *DIT]


def encode(autoencoder: Path, d: Path) -> tuple[object, ...]:
    return "encode", "--autoencoder", autoencoder, "--data", d / "clips", "--out", d / "latents", "--batch_size", 4


def test_latents_are_the_imported_ones_with_the_published_statistics(world):
    reader, codec = ShardReader(world / "latents"), load_codec(world / "wan")
    metadata = reader.manifest.metadata
    assert metadata["autoencoder_fingerprint"] == codec.fingerprint
    np.testing.assert_allclose(metadata["latent_mean"], describe(CONFIG)["latents_mean"], rtol=1e-6)
    np.testing.assert_allclose(metadata["latent_std"], describe(CONFIG)["latents_std"], rtol=1e-6)
    record, (frames, _) = reader.read(0), decode(ShardReader(world / "clips").read(0).video)
    latents = record.latent_array().astype(np.float32)
    assert frames.shape == (5, 16, 24, 3) and latents.shape == (2, 2, 3, 16)
    np.testing.assert_allclose(latents, codec.encode(frames[None])[0], rtol=1e-2, atol=1e-2)  # bfloat16
    assert codec.decode(latents[None]).shape == (1, *frames.shape)


def test_a_generators_batches_are_these_latents_normalised(world, repository):
    prepared = prepare(load_config(str(repository / "configs/dit_quickstart.py"), overrides(world)).to_dict())
    assert prepared.task.fingerprints["autoencoder"] == load_codec(world / "wan").fingerprint
    batch = next(iter(prepared.make_batches(0, 1)))
    codec, rows = load_codec(world / "wan"), batch["tokens"][batch["segment_ids"] > 0]
    reader = ShardReader(world / "latents")
    known = [codec.normalise(reader.read(n).latent_array().astype(np.float32)) for n in range(reader.num_records())]
    tokens = np.concatenate([latents.reshape(-1, latents.shape[-1]) for latents in known])
    nearest = np.min(np.max(np.abs(rows[:, None] - tokens[None]), axis=-1), axis=1)
    assert np.max(nearest) < 1e-5


@pytest.mark.diffusers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_generator_trains_and_samples_in_the_latent_space_of_a_file_of_diffusers(repository, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    small = dict(base_dim=8, dim_mult=[1, 1, 1, 2], num_res_blocks=1)
    diffusers.AutoencoderKLWan(**small).save_pretrained(tmp_path / "vae")
    assert run("checkpoint", "import-autoencoder", "--file", tmp_path / "vae", "--out", tmp_path / "wan") == 0
    write_clips(tmp_path / "clips", [(5, 16, 24)] * 4)
    assert run(*encode(tmp_path / "wan", tmp_path)) == 0
    config = repository / "configs/dit_quickstart.py"
    assert run("train", "--config", config, "--workdir", tmp_path / "dit", *overrides(tmp_path)) == 0
    assert last_line(capsys)["step"] == 1
    options = ("--prompt", "a red circle", "--frames", 1, "--steps", 1, "--guidance", 1, "--size", "24x16")
    assert run("sample", "--run", tmp_path / "dit", *options, "--out", tmp_path / "red.png") == 0
    assert decode(tmp_path / "red.png")[0].shape == (1, 16, 24, 3)


def test_latents_of_another_published_autoencoder_are_refused(world, tmp_path, capsys):
    published = write(tmp_path / "vae", describe(CONFIG), tensors(CONFIG, seed=1))
    assert run("checkpoint", "import-autoencoder", "--file", published, "--out", tmp_path / "other") == 0
    assert run(*encode(tmp_path / "other", world)) == 2
    assert "another autoencoder fingerprint" in capsys.readouterr().err
    assert run("checkpoint", "import-autoencoder", "--file", published, "--out", world / "wan") == 2
    assert "holds another autoencoder" in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_is_an_error(world, tmp_path, capsys):
    words = encode(world / "wan", world)[:-4]
    for mesh, says in (
        ("data=8", "--batch_size 4 does not divide over the 8 devices"),
        ("data=3", "set --mesh so that its sizes multiply to 8"),
        ("data", "such as data=2,context=4"),
    ):
        assert run(*words, "--out", tmp_path / "latents", "--batch_size", 4, "--mesh", mesh) == 2
        assert says in capsys.readouterr().err


def test_the_import_says_what_it_read_and_does_not_mind_a_second_time(world, capsys):
    again = ("checkpoint", "import-autoencoder", "--file", world / "vae", "--out", world / "wan")
    assert run(*again) == 0
    said, codec = last_line(capsys), load_codec(world / "wan")
    assert said["fingerprint"] == codec.fingerprint and said["compression"] == "4x8x8"
    assert said["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(codec.params))
    assert run(*again, "--sha256", "00") == 2
    assert "expected 00" in capsys.readouterr().err
    assert run("checkpoint", "import-autoencoder", "--file", world / "none.pth", "--out", world / "x") == 2
    assert "there is no file" in capsys.readouterr().err and not (world / "x").exists()
