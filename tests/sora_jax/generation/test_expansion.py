"""Short prompts made long: what is sampled, what is kept of both, and what a folder shares."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.evaluation.expansion import judge_expansions, kept
from sora_jax.generation import expansion
from sora_jax.generation.api import Generator
from sora_jax.generation.bulk import Bulk, sample_in_bulk
from sora_jax.generation.expansion import Expander, expand_scenes, settle_expansions
from sora_jax.generation.manifest import EXPANDED, forget
from sora_jax.generation.options import SampleOptions
from sora_jax.generation.storyboard import Scene
from sora_jax.generation.upscale import upscale_options
from tests.data_pipeline.chat_server import MODEL, answer, chat_server

FAST = {"steps": 1, "guidance": 1.0, "frames": 1}
FLAGS = ("--steps", "1", "--guidance", "1", "--frames", "1")


class Lengthening:
    """Adds words; another one each time it is asked, as a server may."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked += prompts
        return [f"{prompt} moves slowly {len(self.asked)}" for prompt in prompts]


@pytest.fixture
def lengthening():
    return Lengthening()


@pytest.fixture
def expanding(generator, lengthening):
    return Generator(generator.run, Expander("model", lengthening))


def test_the_long_prompt_is_sampled_and_both_are_kept(generator, expanding, tmp_path):
    sample = expanding.video("a red ball", seed=3, **FAST)
    np.testing.assert_array_equal(sample.frames, generator.video("a red ball moves slowly 1", seed=3, **FAST).frames)
    assert np.abs(sample.frames.astype(int) - generator.video("a red ball", seed=3, **FAST).frames).max() > 0
    line = sample.save(tmp_path / "a.png")
    texts = {"prompt": "a red ball", "expanded_prompt": "a red ball moves slowly 1", "expander": "model"}
    assert texts.items() <= line.items()
    assert not {"expanded_prompt", "expander"} & generator.video("a", **FAST).save(tmp_path / "b.png").keys()


def test_each_prompt_of_a_batch_is_asked_for_once_and_the_empty_one_never(expanding, lengthening):
    given = SampleOptions("a cube", expanded_prompt="a blue cube", **FAST)
    found = dict(expanding.batch(["a ball", "", "a ball", given], **FAST))
    assert lengthening.asked == ["a ball"]
    assert [found[n].options.text for n in range(4)] == [
        "a ball moves slowly 1",
        "",
        "a ball moves slowly 1",
        "a blue cube",
    ]


def test_a_storyboard_keeps_what_was_asked_for(expanding, lengthening, tmp_path):
    (tmp_path / "story.yaml").write_text("- {at: 0, prompt: a ball}\n- {at: 1, prompt: a cube}\n")
    film = expanding.film(storyboard=tmp_path / "story.yaml", frames=20, steps=1, guidance=1.0)
    assert [(shot["prompt"], shot["expanded_prompt"]) for shot in film.about["shots"]] == [
        ("a ball", "a ball moves slowly 2"), ("a cube", "a cube moves slowly 2"),
    ]  # fmt: skip
    scenes = [Scene(0.0, "a ball")]
    assert expand_scenes(None, scenes) == scenes and "expanded_prompt" not in scenes[0].described()
    assert expanding.film("a cube", frames=9, steps=1, guidance=1.0).options.expanded_prompt == "a cube moves slowly 3"


def test_a_folder_has_one_long_prompt_for_each_whoever_asks_again(expanding, generator, lengthening, tmp_path):
    options = SampleOptions(**FAST).resolved(generator.run.preview)
    job = Bulk(("a ball", "a cube"), 3, tmp_path / "out", options, ending="png", rows_per_batch=1)
    sample_in_bulk(expanding, job)
    (tmp_path / "out/a-ball-0002.png").unlink()
    manifest, result = sample_in_bulk(expanding, job)
    assert result["made"] == 1 and lengthening.asked == ["a ball", "a cube"] and manifest.merge(3) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [(line["file"], line["expanded_prompt"]) for line in lines] == [
        ("a-ball-0000.png", "a ball moves slowly 2"), ("a-cube-0001.png", "a cube moves slowly 2"),
        ("a-ball-0002.png", "a ball moves slowly 2"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="is by model, not other"):
        sample_in_bulk(Generator(generator.run, Expander("other", lengthening)), job)
    with pytest.raises(UserError, match=r"another recipe: expanded_prompts was .* and is null; expander was"):
        sample_in_bulk(generator, job)
    forget(tmp_path / "out")
    assert not (tmp_path / "out" / EXPANDED).exists()


def test_what_a_server_said_before_it_failed_is_not_asked_again(lengthening, tmp_path, monkeypatch):
    def failing(prompts):
        if "c" in prompts:
            raise UserError("the server is away")
        return lengthening(prompts)

    monkeypatch.setattr(expansion, "ASKED_AT_ONCE", 2)
    prompts = ["a", "b", "c", "a"]
    with pytest.raises(UserError, match="the server is away"):
        settle_expansions(tmp_path, Expander("model", failing), prompts)
    path = tmp_path / EXPANDED
    path.write_text(path.read_text() + '{"prompt": "c", "expanded_pro')  # as a kill leaves it
    expected = ["a moves slowly 2", "b moves slowly 2", "c moves slowly 3", "a moves slowly 2"]
    for _ in range(2):
        assert settle_expansions(tmp_path, Expander("model", lengthening), prompts) == expected
    assert lengthening.asked == ["a", "b", "c"]
    odd = ["a line\u2028and\x85another\nstill the same"]  # str.splitlines would break each of these in three
    for _ in range(2):
        assert settle_expansions(tmp_path, Expander("model", lengthening), odd) == [f"{odd[0]} moves slowly 4"]


def test_jobs_of_one_folder_wait_for_the_one_that_asks(lengthening, tmp_path):
    prompts = [f"ball {n}" for n in range(5)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(settle_expansions, tmp_path, Expander("model", lengthening), prompts) for _ in range(4)]
    assert lengthening.asked == prompts and len({tuple(job.result()) for job in jobs}) == 1


def test_a_draft_is_refined_with_the_long_prompt_unless_another_is_given(tmp_path):
    draft = tmp_path / "draft.mp4"
    note = {"prompt": "a ball", "expanded_prompt": "a long ball", "expander": "model", "fps": 8.0}
    (tmp_path / "draft.mp4.json").write_text(json.dumps({**note, "upscale": {"size": "64x64"}}))
    assert upscale_options(draft, SampleOptions(), None).text == "a long ball"
    other = upscale_options(draft, SampleOptions(), "a cube")
    assert (other.text, other.expander) == ("a cube", "")


def test_the_command_line_asks_a_server(random_run, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue cube\n")
    with chat_server(lambda request, n: answer(f"{request['messages'][1]['content']} slowly")) as chat:
        server = ("--expand_server", chat.url, "--expand_model", MODEL)
        words = ("--run", str(random_run), "--prompts", str(prompts), "--format", "png", *FLAGS, *server)
        assert main(["sample", *words, "--out", str(tmp_path / "out")]) == 0
        captured = capsys.readouterr()
        lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
        assert [(line["file"], line["expanded_prompt"], line["expander"]) for line in lines] == [
            ("a-red-ball-0000.png", "a red ball slowly", MODEL), ("a-blue-cube-0001.png", "a blue cube slowly", MODEL),
        ]  # fmt: skip
        assert len(chat.requests) == 2
    one = ["sample", "--run", str(random_run), "--prompt", "a ball", *FLAGS, "--out", str(tmp_path / "a.png")]
    for options, message in (
        (server, "no server answers at"),
        (("--expand_server", "http://x"), "--expand_server needs --expand_model"),
        (("--expand_model", "x"), "--expand_model goes with --expand_server URL"),
        (("--expand", str(random_run)), "is no expander's run: it trained dit"),
    ):
        assert main([*one, *options]) == 2
        assert message in capsys.readouterr().err
    assert captured.out.count("\n") == 1


@pytest.mark.parametrize(
    ("short", "long", "lost"),
    [
        ("a red circle moves left", "A small video of a red circle that moves to the left over darkness.", set()),
        ("a red circle moves left", "A red circle is moving to the right.", {"direction"}),
        ("a red circle moves left", "A blue square stands there.", {"colour", "shape", "direction"}),
        ("a red circle and a blue square", "A blue square, and beside it a red circle.", set()),
        ("a red circle and a blue square", "A red square, and beside it a blue circle.", {"shape"}),
        ("a red circle and a blue square", "A red circle.", {"colour", "shape", "count"}),
        ("a red circle moves up behind a grey bar", "A red circle moves upwards.", {"bar"}),
        ("a red circle", "A red circle on a dark background that moves up.", set()),
    ],
)
def test_what_a_long_prompt_keeps(short, long, lost):
    assert {name for name, is_kept in kept(short, long).items() if not is_kept} == lost
    found = judge_expansions([short, "nothing known"], [long, "nothing known"])
    assert (found["num_prompts"], found["scores"]["all"]["correct"]) == (1, int(not lost))
