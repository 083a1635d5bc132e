"""`evaluate` and `report` on real files: a world's own clips as samples obey in full, exchanged prompts at chance."""

import json
import re
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from data_pipeline.synthetic.captions import captions
from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.worlds import draw_scene
from data_pipeline.video_io import write_video
from sora_jax.commands import main as cli
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.feature_files import save_weights
from sora_jax.models.layers import initialise
from tests.sora_jax.generation.conftest import random_run  # noqa: F401
from tests.sora_jax.models import published_clip
from tests.sora_jax.models.thin_networks import thin_weights

NUM_SAMPLES = 36


def _run(capsys, *words: object) -> dict:
    """One verb through the program; its last line of stdout."""
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out.splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with clip shards, samples that are the world's own clips, and an untrained autoencoder's export."""
    root = tmp_path_factory.mktemp("world")
    assert cli.main(f"data synth --world quickstart --clips 120 --out {root}/videos --workers 1".split()) == 0
    words = f"data build --videos {root}/videos --heldout_fraction 0.3 --out {root}/clips --workers 1"
    assert cli.main(words.split()) == 0
    _write_samples(root / "samples", shift=0)
    _write_samples(root / "exchanged", shift=7)
    config = AutoencoderConfig(latent_channels=4, patch_size=4, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    Codec(config, params, np.zeros(4, np.float32), np.ones(4, np.float32)).save(root / "autoencoder" / "export")
    return root


def _write_samples(directory, shift: int) -> None:
    """Clips of another seed with their captions; with a `shift`, each has the caption of a later one."""
    directory.mkdir()
    scenes = [scene for i in range(60) if (scene := draw_scene("quickstart", 9, i)).num_frames > 1][:NUM_SAMPLES]
    texts = [captions(scene, np.random.default_rng(0))[0][0] for scene in scenes]
    lines = []
    for i, scene in enumerate(scenes):
        write_video(directory / f"{i}.mp4", render(scene)[0], scene.fps)
        lines.append({"file": f"{i}.mp4", "prompt": texts[(i + shift) % NUM_SAMPLES], "seed": i, "fps": scene.fps})
    (directory / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def evaluation(world):
    path = world / "evaluation.json"
    words = (
        f"evaluate --metric probes --generated {world}/samples --real {world}/clips --autoencoder {world}/autoencoder"
    )
    assert cli.main([*words.split(), "--num_real", "24", "--out", str(path)]) == 0
    return json.loads(path.read_text())


def test_the_worlds_own_clips_obey(evaluation):
    for name, score in evaluation["scores"].items():
        assert score["generated"]["rate"] >= 0.97 and score["real"]["rate"] == 1, name
        assert score["generated"]["low"] < score["generated"]["rate"] <= score["generated"]["high"]
    chances = {name: score["chance"] for name, score in evaluation["scores"].items()}
    assert chances == pytest.approx({"colour": 1 / 4, "shape": 1 / 3, "direction": 1 / 4, "all": 1 / 48}, abs=0.09)
    assert (
        len(evaluation["samples"]) == NUM_SAMPLES and evaluation["samples"][0]["verdicts"][0]["attribute"] == "colour"
    )


def test_exchanged_prompts_score_at_chance(world, capsys):
    out = world / "exchanged.json"
    words = ("--generated", world / "exchanged", "--real", world / "clips", "--num_real", 24, "--out", out)
    scores = _run(capsys, "evaluate", "--metric", "probes", *words)["scores"]
    assert scores["all"]["generated"]["rate"] <= 0.1
    for name in ("colour", "shape", "direction"):
        assert scores[name]["generated"]["low"] <= scores[name]["chance"] <= scores[name]["generated"]["high"]


def test_reconstruction_is_measured(world, capsys):
    out = world / "reconstruction.json"
    words = ("--real", world / "clips", "--autoencoder", world / "autoencoder", "--num_real", 8, "--out", out)
    whole = _run(capsys, "evaluate", "--metric", "reconstruction", *words)
    found, written = whole["reconstruction"], json.loads(out.read_text())
    assert found["num_clips"] == 8 and found["flicker"] >= 0 and 0 < found["psnr_db"] < 40 and -1 <= found["ssim"] <= 1
    assert all((world / example["decoded"]).is_file() for example in found["examples"])
    assert (world / whole["latents"]["figure"]).is_file() and len(whole["latents"]["kl_nats"]) == 4
    assert len(written["clips"]) == 8 and all((world / clip["sheet"]).is_file() for clip in written["clips"])
    assert np.mean([clip["psnr_db"] for clip in written["clips"]]) == pytest.approx(found["psnr_db"])
    tiled = _run(capsys, "evaluate", "--metric", "reconstruction", "--tile", 32, *words)["reconstruction"]
    assert tiled["psnr_db"] == pytest.approx(found["psnr_db"], abs=0.05)


def test_another_autoencoder_is_measured_on_the_same_frames(world, shared_data, capsys):
    """Published weights of real pictures are better than random ones by far, and code frames that ours does not."""
    taef2, out = world / "taef2", world / "beside.json"
    _run(capsys, "checkpoint", "import-autoencoder", "--file", shared_data / "weights", "--out", taef2)
    words = ("--real", world / "clips", "--num_real", 2, "--out", out)
    one_way = ("--autoencoder", world / "autoencoder", "--beside", taef2)
    found = _run(capsys, "evaluate", "--metric", "reconstruction", *words, *one_way)
    beside, clips = found["beside"][str(taef2)], json.loads(out.read_text())["clips"]
    assert beside["num_clips"] == 2 and beside["psnr_db"] > found["reconstruction"]["psnr_db"] + 10
    assert np.mean([clip["beside"][str(taef2)]["psnr_db"] for clip in clips]) == pytest.approx(beside["psnr_db"])


def test_reconstruction_is_measured_by_lpips_too(world, shared_data, capsys):
    """The backbone is too coarse for no picture of this world: 32 pixels a side and 24."""
    words = ("--real", world / "clips", "--autoencoder", world / "autoencoder", "--num_real", 2)
    words += ("--lpips", shared_data / "weights", "--lpips_net", "squeeze", "--out", world / "lpips.json")
    found = _run(capsys, "evaluate", "--metric", "reconstruction", *words)["reconstruction"]
    assert 0 < found["lpips"] < 2 and found["lpips_weights"]["net"] == "squeeze"


@pytest.fixture(scope="module")
def networks(world):
    """Converted weights of thinned networks."""
    for network in ("inception", "i3d"):
        save_weights(thin_weights(network), world / f"{network}.safetensors")
    return world


def test_fvd_of_samples_by_a_protocol(networks, capsys):
    w, out = networks, networks / "fvd.json"
    words = ("--metric", "fvd", "--real", w / "clips", "--weights", w / "i3d.safetensors", "--out", out)
    words += ("--protocol", "common-metrics-videogpt", "--frames", 9, "--num_real", 12, "--num_generated", 9)
    words += ("--cache", w / "features", "--bootstrap", 3)
    found = _run(capsys, "evaluate", *words, "--generated", w / "samples", "--batch", 1)
    assert found["protocol"] == "common-metrics-videogpt, 9 frames" and found["num_generated"] == 9
    assert found["num_real"] + found["num_short"]["real"] == 12 and found["fvd"] > 0
    assert found["interval"]["low"] < found["fvd"] < found["interval"]["high"] and 0 <= found["coverage"] <= 1
    assert any("papers take 2048" in warning for warning in found["warnings"])
    assert any("full rank" in warning for warning in found["warnings"]) and "inception_score" not in found
    assert found["made_by"]["fps"] == 8 and len(found["hash"]) == 64 and json.loads(out.read_text())["fvd"]
    again = _run(capsys, "evaluate", *words, "--generated", w / "samples", "--batch", 7)
    assert again["fvd"] == pytest.approx(found["fvd"], rel=1e-6) and again["hash"] == found["hash"]
    other = _run(capsys, "evaluate", *words, "--generated", w / "exchanged", "--batch", 7)
    assert other["hashes"]["generated"] != found["hashes"]["generated"]  # other prompts
    assert other["hashes"]["real"] == found["hashes"]["real"]


def test_fid_of_a_folder_to_itself_is_zero(networks, capsys):
    w = networks
    words = ("--metric", "fid", "--real", w / "samples", "--generated", w / "samples", "--protocol", "clean-fid")
    words += ("--weights", w / "inception.safetensors", "--bootstrap", 0, "--out", w / "fid.json")
    found = _run(capsys, "evaluate", *words, "--num_real", 8, "--num_generated", 8)
    assert abs(found["fid"]) < 1e-3 and found["interval"] is None and found["extrapolated"] is None
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["inception_score"]["mean"] >= 1 and found["weights"]["kind"] == "pytorch-fid"


@pytest.mark.torch
def test_both_metrics_from_published_files(world, capsys, tmp_path):
    """As docs/evaluation.md shows it: two PyTorch files of the published layouts, converted, and a result of both."""
    torch = pytest.importorskip("torch")
    from sora_jax.evaluation.torch_features import Piergiaj, PytorchFid
    from tests.sora_jax.models.published_inception import randomise

    converted = []
    for kind, net in (("pytorch-fid", PytorchFid()), ("cd-fvd", Piergiaj())):
        torch.save(randomise(net).state_dict(), tmp_path / f"{kind}.pth")
        words = ("--kind", kind, "--weights", tmp_path / f"{kind}.pth", "--out", tmp_path / f"{kind}.safetensors")
        converted.append(_run(capsys, "evaluate", "convert-weights", *words))
    words = ("--metric", "fid,fvd", "--real", world / "clips", "--generated", world / "samples", "--frames", 9)
    words += ("--protocol", "torch-fidelity,cd-fvd", "--weights", ",".join(one["out"] for one in converted))
    words += ("--num_real", 6, "--num_generated", 3, "--bootstrap", 0, "--out", tmp_path / "both.json")
    _run(capsys, "evaluate", *words)
    found = json.loads((tmp_path / "both.json").read_text())
    assert found["fid"]["protocol"] == "torch-fidelity" and found["fvd"]["protocol"] == "cd-fvd, 9 frames"
    for metric, one in zip(("fid", "fvd"), converted, strict=True):
        assert found[metric]["hashes"]["network"] == one["fingerprint"] and found[metric][metric] > 0
        assert found[metric]["num_generated"] == 3


def test_frames_are_not_fids_where_fvd_takes_them(networks, capsys):
    w = networks
    words = ("--metric", "fid,fvd", "--real", w / "clips", "--generated", w / "samples", "--num_real", 8, "--frames", 9)
    words += ("--protocol", "torch-fidelity,common-metrics-videogpt", "--num_generated", 3, "--bootstrap", 0)
    words += ("--weights", f"{w}/inception.safetensors,{w}/i3d.safetensors", "--out", w / "both.json")
    found = _run(capsys, "evaluate", *words)
    assert found["fid"]["protocol"] == "torch-fidelity"
    assert found["fvd"]["protocol"] == "common-metrics-videogpt, 9 frames" and found["fvd"]["num_generated"] == 3


def test_videomaes_fvd_takes_pairs_of_frames(networks, capsys):
    """And its file, which is smaller than the published one, is said to be another."""
    w = networks
    save_weights(thin_weights("videomae"), w / "videomae.safetensors")
    words = ["--metric", "fvd", "--real", w / "clips", "--generated", w / "samples", "--num_real", 8, "--bootstrap", 0]
    words += ["--protocol", "cd-fvd-videomae", "--weights", w / "videomae.safetensors", "--num_generated", 3]
    words += ["--out", w / "videomae.json"]
    found = _run(capsys, "evaluate", *words, "--frames", 2)
    assert found["protocol"] == "cd-fvd-videomae, 2 frames" and found["fvd"] > 0
    assert any("--weights is of videomae 128x2" in warning for warning in found["warnings"])
    assert cli.main(["evaluate", *map(str, words), "--frames", "9"]) == 2
    assert "VideoMAE takes pairs of frames, got 9" in capsys.readouterr().err


def test_clip_judges_samples_by_their_prompts(world, capsys):
    pytest.importorskip("tokenizers")
    w, out = world, world / "clip.json"
    folder = published_clip.write(w / "published_clip")
    made = _run(
        capsys, "evaluate", "convert-weights", "--kind", "clip", "--weights", folder, "--out", w / "clip.safetensors"
    )
    assert made["network"] == "clip" and made["parameters"] > 20_000
    words = ("--metric", "clip", "--weights", w / "clip.safetensors", "--out", out, "--num_generated", 9)
    found = _run(capsys, "evaluate", *words, "--generated", w / "samples", "--real", w / "clips", "--num_real", 4)
    rows = json.loads(out.read_text())["samples"]
    assert found["weights"]["fingerprint"] == made["fingerprint"]
    assert found["clip"] == pytest.approx(np.mean([row["clip"] for row in rows])) and found["num_generated"] == 9
    assert found["interval"]["low"] <= found["clip"] <= found["interval"]["high"] and found["num_real"] == 4
    assert found["clip_exchanged"] != found["clip"] and found["clip_real"] >= 0 and "samples" not in found
    assert "of 9 prompts have more than CLIP's 16 tokens" in found["warnings"][0] and found["made_by"]["fps"] == 8
    again = _run(capsys, "evaluate", *words, "--generated", w / "samples", "--batch", 2)
    assert again["clip"] == pytest.approx(found["clip"], rel=1e-6) and "real" not in again["hashes"]
    assert {**again["hashes"], "real": found["hashes"]["real"]} == found["hashes"]
    other = _run(capsys, "evaluate", *words, "--generated", w / "exchanged")
    assert other["hashes"]["generated"] != found["hashes"]["generated"] and other["clip"] != found["clip"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--metric clip --generated {w}/samples", "--metric clip needs --weights FILE"),
        ("--metric clip --generated {w}/samples --weights a,b", "--weights names 2, but 1 of --metric clip (clip)"),
        ("--metric clip --generated {w}/samples --weights {w}/x", "--kind clip"),
        ("--metric clip --generated {w}/clips --weights {w}/x", "no samples.jsonl"),
        ("--metric fid --real {w}/clips --generated {w}/samples", "--metric fid needs --protocol NAME"),
        ("--metric fid --real {w}/clips --protocol google --weights x --generated {w}/samples", "pytorch-fid"),
        ("--metric fvd --real {w}/clips --protocol google --weights {w}/x --generated {w}/samples", "convert-weights"),
        ("--metric fvd --real {w}/clips --generated {w}/samples --frames 0 --protocol google --weights x", "--frames"),
        ("--metric probes --real {w}/clips", "--generated DIR"),
        ("--metric reconstruction --real {w}/clips", "--autoencoder RUN"),
        ("--metric probes --generated {w}/clips --real {w}/clips", "no samples.jsonl"),
        ("--metric probes --generated {w}/samples --real {w}/samples", "manifest.json"),
        ("--metric reconstruction --autoencoder {w}/clips --real {w}/clips", "autoencoder.json"),
        ("--metric probes --generated {w}/samples --real {w}/clips --split test", "train, heldout"),
        ("--metric reconstruction --autoencoder {w}/autoencoder --real {w}/clips --lpips {w}", "holds no lpips_"),
        ("--metric reconstruction --autoencoder {w}/autoencoder --real {w}/clips --tile 20", "--tile is 20"),
        ("--metric probes --generated {w}/samples --real {w}/clips --num_real 0", "--num_real is 0"),
        ("--metric reconstruction --autoencoder {w}/autoencoder --beside {w} --real {w}/clips", "autoencoder.json"),
    ],
)
def test_bad_input_is_one_clear_line(world, capsys, words, message):
    assert cli.main(["evaluate", *words.format(w=world).split(), "--out", str(world / "never.json")]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("sora-jax: error")]
    assert message in line and captured.out == "" and not (world / "never.json").exists()


def test_a_missing_sample_is_named(world, capsys):
    shutil.copytree(world / "samples", world / "torn")
    (world / "torn" / "3.mp4").unlink()
    words = f"evaluate --metric probes --generated {world}/torn --real {world}/clips --out {world}/never.json"
    assert cli.main(words.split()) == 2
    assert "3.mp4" in capsys.readouterr().err


class _Page(HTMLParser):
    """Tags and the addresses that they load from."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.fixture(scope="module")
def runs(world):
    """Two run folders as training leaves them: config, description and metrics."""
    for name, held_out in {"autoencoder": ("l1", "psnr"), "dit": ("loss", "loss_t0.05", "loss_t0.95")}.items():
        folder = world / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"train": {"num_steps": 40}}')
        made = {"devices": "1 x cpu", "jax": "0.10.2", "code": "0.1.0", "fingerprints": {"data": "abc"}}
        (folder / "run.json").write_text(json.dumps(made))
        rows = []
        for step in range(10, 50, 10):
            rates = {"step_seconds": 0.5, "tokens_per_second": 1000.0, "mfu": 0.3}
            rows.append({"step": step, "kind": "train", "loss": 1 / step, "l1": 1 / step, "psnr": 20.0, **rates})
            rows.append({"step": step, "kind": "eval", **dict.fromkeys(held_out, 2 / step)})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world


def test_the_page_needs_nothing_beside_itself(runs, evaluation, capsys):
    w = runs
    words = ("--run", w / "dit", "--autoencoder", w / "autoencoder", "--samples", w / "samples")
    words += ("--evaluation", w / "evaluation.json", "--title", "A <title>", "--out", w / "index.html")
    assert _run(capsys, "report", *words)["size_bytes"] > 50_000
    text = (w / "index.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("video") == NUM_SAMPLES and page.tags.count("svg") >= 4
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?https?:', text)
    assert "A &lt;title&gt;" in text and "prefers-color-scheme: dark" in text
    for entry in evaluation["samples"]:
        assert entry["prompt"] in text
    obeyed = sum(entry["obeyed"] for entry in evaluation["samples"])
    assert f"obeyed {obeyed}<" in text and "t = 0.95" in text


def test_a_page_without_scores(runs, capsys):
    words = ("--run", runs / "dit", "--samples", runs / "samples", "--out", runs / "plain.html")
    _run(capsys, "report", *words)
    text = (runs / "plain.html").read_text()
    assert "How often the prompt is obeyed" not in text and "<video" in text


def test_a_report_of_nothing_is_a_clear_error(runs, capsys):
    words = f"report --run {runs}/nothing --samples {runs}/samples --out {runs}/never.html"
    assert cli.main(words.split()) == 2
    assert "nothing is no run, it has no config.json" in capsys.readouterr().err


def test_modes_are_judged_beside_holding_still_and_the_autoencoder(world, random_run, tmp_path, capsys):  # noqa: F811
    """A network of random weights keeps what is known exactly, whatever else it makes."""
    out = tmp_path / "modes.json"
    words = f"evaluate --metric modes --run {random_run} --real {world}/clips --num_real 2 --steps 1 --out {out}"
    result = _run(capsys, *words.split())
    assert {"text", "animate", "key frames", "forward", "backward", "connect"} <= {
        mode.split(",")[0] for mode in result["scores"]
    }
    for mode, scores in result["scores"].items():
        if not mode.startswith("text"):
            assert scores["generated"]["known_exact"]["rate"] == 1, mode
        if mode.startswith("forward"):
            assert scores["holding"]["place"]["rate"] == 0
    assert (tmp_path / result["sheet"]).stat().st_size > 1000


def test_predictions_are_compared_with_what_came_frame_by_frame(world, random_run, tmp_path, capsys):  # noqa: F811
    words = f"evaluate --metric prediction --run {random_run} --real {world}/clips --num_real 3 --steps 1 --trials 2"
    result = _run(capsys, *words.split(), "--out", tmp_path / "prediction.json")
    assert result["protocol"] == "5 frames known, 4 made, 2 futures" and len(set(result["hashes"].values())) == 4
    psnr, curves = result["scores"]["psnr_db"], result["by_frame"]["psnr_db"]
    assert psnr["best"]["mean"] >= psnr["mean"]["mean"] and psnr["autoencoded"]["mean"] > psnr["mean"]["mean"]
    assert all(len(curve) == 4 for curve in curves.values())
    assert curves["holding"][0] > curves["holding"][-1], "bodies move away from where they were held"
    assert all((tmp_path / result[name]).stat().st_size > 1000 for name in ("figure", "sheet"))
    assert cli.main([*words.split(), "--context", "9", "--out", f"{tmp_path}/never.json"]) == 2
    assert "9 known frames of 9 leave none to predict" in capsys.readouterr().err
    assert cli.main([*words.split(), "--context", "4", "--out", f"{tmp_path}/never.json"]) == 2
    assert "4, but the autoencoder codes 1 + 4 n frames: 1 would be shown" in capsys.readouterr().err


def test_a_gallery_shows_every_mode_and_keeps_what_was_known(world, random_run, tmp_path, capsys):  # noqa: F811
    words = f"evaluate --metric gallery --run {random_run} --real {world}/clips --steps 1 --out {tmp_path}/gallery.json"
    result = _run(capsys, *words.split())
    assert result["known_pixels_differ_in"] == []
    lines = json.loads((tmp_path / "gallery.json").read_text())["samples"]
    modes = {line["mode"] for line in lines}
    exact = {line["mode"] for line in lines if line.get("known_error") == 0 and line["known_pixels"] > 0}
    assert modes - exact == {"text", "image", "edit, strength 0.4", "edit, strength 0.7", "long, in windows", "draft",
                             "draft, upscaled"}  # fmt: skip
    assert all((tmp_path / result["videos"] / line["file"]).stat().st_size for line in lines) and len(exact) == 9
    assert (tmp_path / result["sheet"]).stat().st_size > 1000
