"""`sora-jax recaption` from end to end: a captioner's run, a server, latents, and what is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.latents import WindowConfig, encode_latents
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import Tokenizer
from sora_jax.commands.main import main
from sora_jax.objectives.captioner import prepare
from sora_jax.training.checkpoint import Checkpoints, Retention, describe_run
from sora_jax.training.step import TrainState
from sora_jax.training.trained_captioner import TrainedCaptioner
from tests.data_pipeline.chat_server import MODEL, answer, chat_server, clip_of
from tests.data_pipeline.conftest import write_clips
from tests.data_pipeline.test_latents import ENCODING

SHAPES = [(5, 16, 24), (9, 24, 16), (1, 16, 16), (5, 16, 16)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("recaption") / "clips", SHAPES)


@pytest.fixture(scope="module")
def captioner_run(clips):
    """A captioner with weights that make it say one word of every clip, and end."""
    config = {
        "data": {"path": str(clips), "canvas": (5, 16, 16), "max_tokens": 6, "caption_weights": {"human": 1.0}},
        "model": {
            "patch": (5, 8, 8), "width": 16, "depth": 1, "num_heads": 2, "num_memory": 4, "text_width": 16,
            "text_depth": 2, "cross_depth": 1, "text_heads": 2, "vector_width": 8,
        },
        "optim": {},
        "train": {"task": "captioner", "batch_rows": 2, "eval_batches": 0, "eval_every": 0},
    }  # fmt: skip
    prepared = prepare(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(prepared.task.init, jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape, np.float32)), shapes)
    text = params["captioner"]["text"]
    params["captioner"]["text"] = jax.tree.map(jnp.zeros_like, text) | only_word(text, *word_and_end(clips))
    state = TrainState(jnp.int32(3), params, params, {}, jnp.int32(0), jnp.int32(0))
    run = clips.parent / "run"
    with Checkpoints(run, Retention(1), describe_run(config, prepared.task.fingerprints)) as checkpoints:
        checkpoints.save(state, 3, {})
    return run


def word_and_end(clips):
    tokenizer = Tokenizer.load(clips / "tokenizer.model")
    return tokenizer.encode("ball")[-1], tokenizer.eos_id


def only_word(text, word, end, ends=True):
    """Weights under which `word` follows `end`, and behind it `end` again, or else `word` for ever: the last norm turns
    around what attracts itself."""
    table = jnp.zeros_like(text["embedding"]).at[end, 0].set(0.5).at[word, 0].set(-0.5 if ends else 1.0)
    sign = -1.0 if ends else 1.0
    return {"embedding": table, "norm": {"scale": jnp.full_like(text["norm"]["scale"], sign)}}


def test_a_caption_without_an_end_is_cut_to_its_last_full_sentence(captioner_run, clips):
    trained = TrainedCaptioner.from_run(captioner_run)
    (word, end), frames = word_and_end(clips), [np.zeros((5, 16, 16, 3), np.uint8)]
    decode = trained.tokenizer.decode
    assert decode([word]) and trained.captions(frames) == [decode([word])]
    for token in (word, stop := trained.tokenizer.encode("ball.")[-1]):
        text = trained.params["text"] | only_word(trained.params["text"], token, end, ends=False)
        endless = replace(trained, params={**trained.params, "text": text})
        assert list(endless.stream_written(frames)) == [(decode([token] * 6), True)]
        assert endless.captions(frames) == [decode([stop] * 6) if token == stop else ""]


def command(capsys, *words):
    """(exit code, the JSON of the last line of stdout or None, stderr)."""
    code = main(["recaption", *map(str, words)])
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    return code, json.loads(lines[-1]) if lines else None, captured.err


def test_a_captioners_run_captions_clips_and_their_latents(clips, captioner_run, tmp_path, capsys):
    code, result, error = command(
        capsys, "--data", clips, "--captioner", captioner_run, "--out", tmp_path / "out", "--max_failures", 99
    )
    assert code == 0, error
    assert result["source"].startswith("captioner ") and len(result["source"]) == len("captioner ") + 12
    assert result["captions"] + result["uncaptioned"] == len(SHAPES) and result["captions"] > 0
    before, after = ShardReader(clips), ShardReader(tmp_path / "out")
    for n in range(len(SHAPES)):
        old, new = before.read(n), after.read(n)
        assert replace(new, captions=new.captions[: len(old.captions)]) == old
    again = command(capsys, "--data", clips, "--captioner", captioner_run, "--out", tmp_path / "out")[1]
    assert (again["fingerprint"], again["asked"]) == (result["fingerprint"], 0)
    encode_latents(clips, tmp_path / "latents", ENCODING, WindowConfig(), lambda: None)
    words = ("--data", tmp_path / "out", "--latents", tmp_path / "latents", "--out", tmp_path / "new")
    code, result, error = command(capsys, *words)
    assert code == 0 and result["data_fingerprint"] == before.manifest.fingerprint, error
    captions = {after.read(n).clip_id: after.read(n).captions for n in range(len(SHAPES))}
    for record in map(ShardReader(tmp_path / "new").read, range(result["windows"])):
        assert record.captions == captions[record.clip_id.partition("@")[0]]


def test_a_server_is_asked_after_the_estimate(clips, tmp_path, capsys, caplog):
    with chat_server(lambda request, n: answer(f"A ball, clip {clip_of(request)}.")) as chat:
        words = ("--data", clips, "--server", chat.url, "--model", MODEL, "--out", tmp_path / "out", "--limit", 3)
        prices = ("--price_in", 2, "--price_out", 8, "--num_frames", 3)
        code, result, error = command(capsys, *words, *prices, "--estimate")
        assert code == 0 and not chat.requests and not (tmp_path / "out").exists()
        assert (result["clips"], result["images"]) == (3, 3 + 3 + 1) and "cost: about $" in caplog.text
        code, result, error = command(capsys, *words, *prices)
    assert code == 0 and result["captions"] == 3, error
    assert result["usage"] == {"requests": 3, "input_tokens": 300, "output_tokens": 21, "cost": 0.0008}
    texts = [[c.text for c in ShardReader(tmp_path / "out").read(n).captions] for n in range(4)]
    assert texts == [["a ball", f"A ball, clip {n}."] for n in range(3)] + [["a ball"]]


def test_what_cannot_be_done_is_said_before_a_clip_is_read(clips, captioner_run, latents_of, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    out = ("--out", tmp_path / "out")
    with chat_server(lambda request, n: answer("fine")) as chat:
        asked = ("--data", clips, *out, "--server", chat.url)
        refused = [
            ((*asked,), "name the server's model, with --model"),
            ((*asked, "--model", "other"), f"has no model 'other'; it lists {MODEL}"),
            ((*asked, "--model", MODEL, "--template", empty), "is empty: write what the model is asked for"),
            ((*asked, "--model", MODEL, "--limit", 0), "--limit is 0"),
            ((*asked, "--model", MODEL, "--price_in", "nan"), "--price_in is nan"),
            ((*asked, "--model", MODEL, "--temperature", "nan"), "temperature is nan"),
            (
                ("--data", latents_of, *out, "--captioner", captioner_run),
                "holds latents, but a captioner",
            ),
            (("--data", clips, *out, "--captioner", captioner_run, "--model", "x"), "--model is a server's"),
            (("--data", clips, *out, "--captioner", captioner_run, "--estimate"), "--estimate is of a server's tokens"),
            (("--data", clips, *out, "--captioner", tmp_path / "none"), "none"),
            (
                ("--data", clips, *out, "--captioner", captioner_run, "--template", empty),
                "--template says nothing beside",
            ),
            (
                ("--data", clips, *out, "--captioner", captioner_run, "--max_tokens", 99),
                "--max_tokens says nothing beside --captioner",
            ),
            (("--data", clips, *out, "--latents", latents_of, "--num_frames", 0), "--num_frames says nothing beside"),
            ((*asked, "--model", MODEL, "--trained_on", clips), "--trained_on says nothing beside --server"),
            (("--data", clips, *out, "--latents", latents_of, "--limit", 2), "--limit says nothing beside --latents"),
        ]
        for words, message in refused:
            code, _, error = command(capsys, *words)
            assert code == 2 and message in error
    code, _, error = command(capsys, *asked, "--model", MODEL)
    assert code == 2 and f"no server answers at {chat.url}/v1" in error
    assert not (tmp_path / "out").exists() and not chat.requests


@pytest.fixture(scope="module")
def latents_of(clips):
    encode_latents(clips, clips.parent / "latents", ENCODING, WindowConfig(), lambda: None)
    return clips.parent / "latents"
