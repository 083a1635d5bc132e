"""The pages of `sora-jax report`: of one run from what it left behind, and of several runs compared."""

import base64
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipeline.build import BuildConfig, build
from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest
from data_pipeline.video_io import decode, write_video
from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.evaluation.follow import add_rows, with_intervals, write_result
from sora_jax.evaluation.report import data_of
from sora_jax.evaluation.report_compare import times
from sora_jax.evaluation.report_config import differences, differing, short_names
from sora_jax.evaluation.report_curves import goodput, read_scores, spells
from sora_jax.evaluation.report_data import read_funnel
from sora_jax.evaluation.report_samples import MOST_STEPS, by_checkpoint, compared
from sora_jax.training.checkpoint import describe_run
from sora_jax.training.compute import FLOPS, read_spent
from sora_jax.training.ledger import Ledger
from sora_jax.training.metrics import MetricsLog, read_metrics
from sora_jax.training.run_directory import open_run
from tests.browser import check_page, open_page
from tests.sora_jax.training.saved_states import save_all

SIZE = 32
PROMPTS = ("a red circle moves left", "a blue square moves up")


def make_run(folder, repository, size, num_steps, clips=None, previews=3):
    """A run as training leaves it, written by what training writes with; only the numbers are made up."""
    overrides = [f"--config.model.width={2 * size}", f"--config.train.num_steps={num_steps}"]
    config = load_config(str(repository / "configs/dit_quickstart.py"), overrides).to_dict()
    config["data"]["path"] = str(clips or "nowhere")
    config["preview"]["prompts"] = PROMPTS
    fingerprints = {"data": Manifest.load(clips).fingerprint} if clips else {}
    open_run(folder, describe_run(config, fingerprints), False)
    with MetricsLog(folder, 0) as log:
        for step in range(10, num_steps + 1, 10):
            rates = {"tokens_per_second": 1000.0 + step, "step_seconds": 0.5, "mfu": 0.25, "padding": 0.5}
            work = {"grad_norm": 1 / step, "learning_rate": 1e-3, "data_wait": 0.02}
            log.write(step, "train", {"loss": 9 / step, **work, **rates})
            log.write(step, "eval", {"loss": 10 / step / size, "loss_t0.05": 2 / step, "loss_t0.95": 1 / step})
    with Ledger(folder, 1000.0) as ledger:
        ledger.restore(0)
        ledger.train_from(0)
        ledger.beat(num_steps, 0.0)
    save_all(folder, [num_steps], size=size)
    (folder / "previews").mkdir()
    for step in range(1, previews + 1):
        sheet = np.zeros((len(PROMPTS) * SIZE, 9 * SIZE, 3), np.uint8)
        sheet[:SIZE, :, 0], sheet[SIZE:, :, 2] = 200, 25 * step  # the first line is red, the second ever bluer
        Image.fromarray(sheet).save(folder / "previews" / f"samples_{step:07d}.png")
    return folder


def make_samples(folder, step, seed=0, prompts=PROMPTS, guidance=3.0):
    """Samples with their lines, as `sora-jax sample` leaves them."""
    lines = []
    for i, prompt in enumerate(prompts):
        frames = np.random.default_rng(step + i).integers(0, 255, (5, SIZE, SIZE, 3), np.uint8)
        write_video(folder / f"{i}.mp4", frames, 8.0)
        lines.append({"file": f"{i}.mp4", "prompt": prompt, "seed": seed + i, "step": step, "guidance": guidance})
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clip shards of nine videos and a text file with a video's ending."""
    d = tmp_path_factory.mktemp("clips")
    for i in range(9):
        write_video(d / f"v/{i}.mp4", np.full((9, SIZE, SIZE, 3), 20 * i, np.uint8), 8.0)
    (d / "v/broken.mp4").write_text("no video")
    build(d / "v", d / "shards", BuildConfig())
    return d / "shards"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository, clips):
    """Three runs of 1, 4 and 16 times the compute, of one size, and their samples."""
    d = tmp_path_factory.mktemp("runs")
    for name, num_steps in (("large", 320), ("small", 20), ("mid", 80)):
        make_run(d / name, repository, 16, num_steps, clips if name == "small" else None)
        make_samples(d / f"{name}_samples", num_steps)
    for step, value in ((10, 50.0), (20, 40.0)):
        interval = {"low": value - 5, "high": value + 5}
        shape = {"generated": {"rate": 0.5, "low": 0.4, "high": 0.6}}
        one = {"synth-fd": {"synth-fd": value, "interval": interval}, "probes": {"scores": {"shape": shape}}}
        write_result(d / "small/evaluations", step, {"metric": "synth-fd,probes", **one})
        make_samples(d / f"small/evaluations/scores_samples/{step}_ema", step)
    add_rows(d / "small", d / "small/evaluations")
    return d


def report(out, *words):
    return main(["report", *map(str, words), "--out", str(out)])


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    """One run alone, and three compared."""
    d = tmp_path_factory.mktemp("pages")
    assert report(d / "alone.html", "--run", runs / "small") == 0
    names = ("large", "small", "mid")
    samples = [runs / f"{name}_samples" for name in names]
    assert report(d / "compared.html", "--run", *(runs / name for name in names), "--samples", *samples) == 0
    return d


def test_a_run_alone_makes_a_page_of_all_that_it_left(pages):
    text = (pages / "alone.html").read_text()
    titles = ("Loss of the diffusion transformer", "Held-out loss by noise level", "Learning rate", "Gradient norm")
    for title in (
        *titles,
        "Tokens a second",
        "MFU",
        "Goodput",
        "Padding",
        "Waiting for data",
        "synth-fd",
        "probes/shape",
    ):
        assert f"<h3>{title}</h3>" in text, title
    assert text.count("<video") == 2 * 3 + 2 * 2  # previews at three steps, a follower's samples at two
    assert (
        "model.<wbr>width" in text and "9 of 10 inputs kept" in text and "steps whose result the run still has" in text
    )
    assert 'src="http' not in text and "Prompts and what came out" not in text


def test_several_runs_are_ordered_by_compute(pages):
    text = (pages / "compared.html").read_text()
    heads = text[text.index('class="matrix') : text.index('class="prompt')]
    places = [heads.index(f"<strong>{multiple}</strong>") for multiple in ("1×", "4×", "16×")]
    assert places == sorted(places)
    assert heads.index("small") < heads.index("mid") < heads.index("large")
    assert text.count("<video") == 6 and text.count("seed 1") == 1
    for said in ("held out, by step", "held out, by compute", "train.<wbr>num_<wbr>steps", '<td class="best">'):
        assert said in text, said


def test_samples_that_are_not_the_same_draws_are_refused(runs, tmp_path, capsys):
    other = make_samples(tmp_path / "other", 20, seed=5)
    both = ("--run", runs / "small", runs / "mid", "--samples", runs / "small_samples")
    assert report(tmp_path / "x.html", *both, other) == 2
    said = capsys.readouterr().err
    assert 'only the first has prompt "a blue square moves up" with seed 1' in said and "with seed 6" in said
    assert report(tmp_path / "x.html", *both) == 2
    assert "names 2 runs and --samples 1" in capsys.readouterr().err
    assert report(tmp_path / "x.html", *both[:3], "--evaluation", tmp_path / "e.json") == 2
    assert "--evaluation belongs to a page of 1" in capsys.readouterr().err
    assert report(tmp_path / "x.html", "--run", tmp_path / "nothing") == 2
    assert "is no run" in capsys.readouterr().err
    assert report(tmp_path / "x.html", "--run", runs / "small", "gs://bucket/run") == 2
    assert "no path of a file system" in capsys.readouterr().err
    stronger = make_samples(tmp_path / "stronger", 80, guidance=6.0)
    heads = [("1×", ""), ("4×", "")]
    matrix, note = compared([runs / "small_samples", stronger], heads, [1, 0])
    assert "guidance (3.0, 6.0)" in note and matrix.heads == heads[::-1]


def test_runs_of_different_tasks_are_not_compared(runs, tmp_path, capsys):
    other = shutil.copytree(runs / "small", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["train"]["task"] = "autoencoder"
    (other / "config.json").write_text(json.dumps(config))
    assert report(tmp_path / "x.html", "--run", runs / "small", other) == 2
    assert "is of the task autoencoder" in capsys.readouterr().err


def test_compute_is_parameters_times_live_tokens(runs):
    spent = read_spent(runs / "mid")
    config = json.loads((runs / "mid/config.json").read_text())
    tokens = 80 * config["train"]["batch_rows"] * config["data"]["row_tokens"] / 2  # half is padding
    assert spent.parameters == 2 * 16 * 16 + 3
    assert spent.tokens_at(80) == pytest.approx(tokens) and spent.tokens_at(25) == pytest.approx(tokens * 25 / 80)
    assert spent.tokens_at(160) == pytest.approx(2 * tokens)
    assert spent.flops_at(80) == pytest.approx(FLOPS * spent.parameters * tokens)
    assert [times(x, 2.0) for x in (2.0, 8.0, 8.2, 31.9)] == ["1×", "4×", "4.1×", "16×"]


@pytest.mark.parametrize("stages", [({"start": 0, "caption_weights": {"a": 1.0}},), ((0, {"a": 1.0}),)])
def test_a_run_whose_rows_hold_no_tokens_has_no_compute(runs, tmp_path, repository, stages):
    run = shutil.copytree(runs / "small", tmp_path / "captioner")
    config = load_config(str(repository / "configs/captioner_quickstart.py")).to_dict()
    config["data"]["stages"] = stages  # the form of today, and that of older runs
    (run / "config.json").write_text(json.dumps(config))
    spent = read_spent(run)
    assert spent.parameters > 0 and spent.tokens_at(10) is None and spent.flops_at(10) is None


def test_previews_are_cut_into_the_videos_that_they_were(repository, tmp_path):
    run = make_run(tmp_path / "run", repository, 16, 20, previews=9)
    config = json.loads((run / "config.json").read_text())
    (matrix,) = by_checkpoint(run, config)
    assert [name for name, _ in matrix.heads] == [f"step {s}" for s in (1, 3, 4, 6, 7, 9)] and MOST_STEPS == 6
    for row, (prompt, _, media) in enumerate(matrix.rows):
        assert prompt == PROMPTS[row] and all(medium.is_video for medium in media)
    (tmp_path / "last.mp4").write_bytes(base64.b64decode(matrix.rows[1][2][-1].uri.partition(",")[2]))
    frames, fps = decode(tmp_path / "last.mp4")
    assert frames.shape == (9, SIZE, SIZE, 3) and fps == 8 and abs(int(frames[..., 2].mean()) - 225) < 8
    config["preview"]["height"] = 25  # previews of another size than the config's cannot be cut
    assert all(medium is None for _, _, media in by_checkpoint(run, config)[0].rows for medium in media)


def test_scores_have_the_intervals_of_the_followers_results(runs):
    scores = read_scores(runs / "small", read_metrics(runs / "small"))
    assert scores["synth-fd"] == {10: (50.0, 45.0, 55.0), 20: (40.0, 35.0, 45.0)}
    assert scores["probes/shape"][20] == (0.5, 0.4, 0.6)
    mean = {"metric": "dimensions", "scores": {"generated": {"sharpness": {"mean": 0.5, "low": 0.4, "high": 0.7}}}}
    assert with_intervals(mean) == {"dimensions/sharpness": (0.5, 0.4, 0.7)}


def test_the_ledger_is_shown_as_the_verb_adds_it_up(runs):
    account, curves = goodput(runs / "small")
    shown = {spell.kind: spell.percent for spell in spells(account)}
    assert sum(shown.values()) == pytest.approx(100, abs=0.1) and [curve.title for curve in curves] == ["Goodput"]
    assert goodput(runs) == (None, [])


def test_a_config_is_held_against_the_codes_defaults(runs):
    config = json.loads((runs / "small/config.json").read_text())
    rows = {row.name: row.values for row in differences(config)}
    assert rows["model.width"] == ["384", "32"] and rows["data.row_tokens"][0] == "–"
    assert "optim.clip_norm" not in rows and "data.caption_dropout" not in rows and "model.text.num_heads" not in rows
    changed = json.loads(json.dumps(config))
    changed["model"]["width"], changed["optim"] = 48, {}
    assert {row.name: row.values for row in differing([config, changed])}["model.width"] == ["32", "48"]
    defaults = {**config, "model": {**config["model"], "width": 384}}
    without = {**config, "model": {n: v for n, v in config["model"].items() if n != "width"}}
    assert differing([defaults, without]) == []  # what is left out is at its default


def test_runs_with_long_names_are_told_apart_by_few_fields(repository, tmp_path):
    configs, folders = [], []
    for width in (32, 64):
        for steps in (10, 20):
            overrides = [f"--config.model.width={width}", f"--config.train.num_steps={steps}"]
            configs.append(load_config(str(repository / "configs/dit_quickstart.py"), overrides).to_dict())
            folders.append(tmp_path / f"a_very_long_name_of_a_run_{width}_{steps}")
    names = short_names(folders, differing(configs))
    assert names[0] == "width 32, num_steps 10" and len(set(names)) == 4
    assert short_names([tmp_path / "a/dit", tmp_path / "b/dit"], []) == ["a", "b"]


def test_the_funnel_counts_what_was_found_and_why_it_went(clips, runs, tmp_path):
    (stage,) = read_funnel([clips])
    assert (stage.found, stage.kept, stage.percent) == (10, 9, 90.0) and sum(n for _, n in stage.reasons) == 1
    assert data_of(runs / "small") == clips and data_of(runs / "mid") is None
    curated = tmp_path / "curated"
    curated.mkdir()
    amounts = [{"clips": clips, "hours": clips / 10} for clips in (12, 8)]
    counts = {stage: {"in": amounts[1], "dropped": {}, "out": amounts[1]} for stage in ("models", "captions")}
    counts |= dict.fromkeys(("duplicates", "balance", "render"), counts["models"])
    counts["filters"] = {"in": amounts[0], "dropped": {"static": {"clips": 4, "hours": 0.4}}, "out": amounts[1]}
    counts |= {"probe": {"in": 6, "dropped": {"unreadable": 1}}, "shots": {"cuts": 7, "cropped": 0, "out": amounts[0]}}
    (curated / "funnel.json").write_text(json.dumps({"funnel": counts}))
    stages = read_funnel([curated, clips])
    assert [(s.name, s.found, s.kept) for s in stages[:3]] == [
        ("readable sources", 6, 5),
        ("shots", 12, 12),
        ("filters", 12, 8),
    ]
    assert stages[2].reasons == (("static", 4),) and stages[3].unit == "inputs"
    with pytest.raises(UserError, match="holds no data"):
        read_funnel([tmp_path])


@pytest.mark.chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("page", ["alone.html", "compared.html"])
def test_a_browser_shows_the_page_and_asks_for_nothing(pages, tmp_path, page, width, dark):
    found = open_page(pages / page, tmp_path, width, dark)
    check_page(found, width, dark)
    assert len(found["videos"]) == (10 if page == "alone.html" else 6)
