"""A tiny captioner's run through the program: trained, gone on with, loaded, its captions measured."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import decode_record
from sora_jax.commands import main as cli
from sora_jax.parallel import make_mesh
from sora_jax.training.trained_captioner import TrainedCaptioner

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    short, long = (dict(caption_weights={f"synthetic {kind}": 1.0}) for kind in ("short", "long"))
    config.data = dict(path="clips", canvas=(3, 32, 32), max_tokens=8, stages=(short, dict(start=1, **long)))
    config.model = dict(width=24, depth=1, num_heads=2, num_memory=2, text_width=16, text_depth=2, cross_depth=1,
                        text_heads=2, vector_width=8)
    config.optim = dict(learning_rate=1e-2, warmup_steps=1)
    config.train = dict(task="captioner", num_steps=3, batch_rows=8, log_every=1, eval_every=3, eval_batches=1,
                        preview_every=3, checkpoint_every=2)
    return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with clips of the quickstart's world and a captioner's run of three steps."""
    root = tmp_path_factory.mktemp("captioned")
    (root / "config.py").write_text(CONFIG)
    assert cli.main(f"data synth --world quickstart --clips 24 --out {root}/videos --workers 1".split()) == 0
    words = f"data build --videos {root}/videos --heldout_fraction 0.4 --out {root}/clips --workers 1"
    assert cli.main(words.split()) == 0
    words = f"train --config {root}/config.py --workdir {root}/run --config.data.path={root}/clips"
    assert cli.main(words.split()) == 0
    return root


def test_a_run_logs_its_losses_and_shows_its_captions(world):
    rows = [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    cut = [row["captions_truncated"] for row in trained]
    assert cut[0] < 1 and cut[1:] == [1, 1]  # every long caption has more than 8 tokens, and few short ones have
    assert all({"caption_loss", "contrastive_loss", "token_accuracy"} <= row.keys() for row in trained)
    previewed = list((world / "run").rglob("captions_0000003.json"))
    assert len(previewed) == 1 and previewed[0].with_suffix(".png").is_file()
    assert all(pair["given"] for pair in json.loads(previewed[0].read_text()))


def test_captions_do_not_depend_on_devices_or_on_the_number_of_clips(world):
    reader = ShardReader(world / "clips")
    frames = [decode_record(reader.read(number))[0] for number in range(9)]
    spread = TrainedCaptioner.from_run(world / "run", micro_batch=1)
    assert spread.mesh.size == jax.local_device_count() and spread.step == 3
    written = list(spread.stream_written(frames))
    mesh = make_mesh({}, jax.devices()[:1])
    alone = dataclasses.replace(spread, mesh=mesh, params=jax.device_get(spread.params), micro_batch=4)
    assert len(written) == 9 and list(alone.stream_written(frames)) == written
    assert any(text for text, _ in written)
    assert list(spread.stream_written(frames[4:5])) == written[4:5] and spread.captions([]) == []
    long = np.concatenate([np.repeat(np.repeat(clip, 2, 1), 2, 2) for clip in frames[:1] * 2])  # another size
    assert isinstance(spread.captions([long])[0], str)


def test_evaluate_measures_its_captions(world, capsys):
    out = world / "captions.json"
    words = ["evaluate", "--metric", "captions", "--run", world / "run", "--real", world / "clips", "--out", out]
    assert cli.main([str(word) for word in words]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(printed["scores"]) == {"colour", "shape", "direction", "count", "all"}
    written = json.loads(out.read_text())
    num = ShardReader(world / "clips").num_records("heldout")
    assert len(written["clips"]) == printed["num_clips"] == printed["scores"]["count"]["total"] == num
    assert 0 < printed["scores"]["colour"]["chance"] < 0.5 and (world / printed["sheet"]).is_file()
    reader = ShardReader(world / "clips")
    assert all(clip["given"] == reader.read(clip["record"]).captions[0].text for clip in written["clips"])


def test_what_is_no_captioner_is_refused(world, tmp_path):
    other = shutil.copytree(world / "clips", tmp_path / "clips")
    (other / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match="sentencepiece"):
        TrainedCaptioner.from_run(world / "run", clips=other)
    with pytest.raises(UserError):
        TrainedCaptioner.from_run(world / "clips")
