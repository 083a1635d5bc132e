"""A caption server over real HTTP: what it is sent, how it fails, what that costs."""

import asyncio
import time

import numpy as np
import pytest

from data_pipeline.caption_messages import CLIP_FACTS, read_template
from data_pipeline.caption_server import Server, captioner, estimate, expander
from data_pipeline.errors import UserError
from data_pipeline.recaption import recaption
from data_pipeline.shards import ShardReader
from tests.data_pipeline.chat_server import MODEL, answer, chat_server, clip_of, pictures, refusal

SHAPES = [(9, 32, 48)] * 6


def texts(folder):
    reader = ShardReader(folder)
    return [[c.text for c in reader.read(n).captions[1:]] for n in range(reader.num_records())]


def server(chat, **fields):
    return Server(chat.url, MODEL, **{"concurrency": 1, "max_retries": 3, **fields})


def test_frames_and_the_template_are_sent_and_the_answer_is_kept(tmp_path, clips_in, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    clips = clips_in(tmp_path / "clips", SHAPES)
    template = tmp_path / "ask.txt"
    template.write_text(
        "{{ num_frames }} of {{ width }}x{{ height }}, {{ '%.2f' % duration_s }} s, {{ captions[0].text }}"
    )
    with chat_server(lambda request, n: answer(f"<think>hm</think>\nIt is clip\n{clip_of(request)}.")) as chat:
        where = server(chat, temperature=0.5, max_tokens=50)
        result = recaption(clips, tmp_path / "out", captioner(where, template, num_frames=3, long_side=24))
    assert texts(tmp_path / "out") == [[f"It is clip {n}."] for n in range(6)]
    caption = ShardReader(tmp_path / "out").read(0).captions[1]
    assert (caption.source, caption.language) == (MODEL, "en") and result["captions"] == 6
    request = chat.requests[1]
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == (MODEL, 0.5, 50)
    assert request["messages"][0]["content"][0] == {"type": "text", "text": "3 of 24x16, 1.12 s, a ball"}
    sent = pictures(request)
    assert [frame.shape for frame in sent] == [(16, 24, 3)] * 3
    np.testing.assert_allclose(
        [frame[..., 0].mean() for frame in sent], [8, 12, 16], atol=2
    )  # frames 0, 4, 8 of clip 1
    assert (where.usage.requests, where.usage.input_tokens, where.usage.output_tokens) == (6, 600, 42)


def test_what_fails_in_passing_is_tried_again(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)

    def respond(request, number):
        return [answer(f"clip {clip_of(request)}"), refusal(429, "slow down"), refusal(500)][number % 3]

    with chat_server(respond) as chat:
        result = recaption(clips, tmp_path / "out", captioner(server(chat)))
    assert texts(tmp_path / "out") == [[f"clip {n}"] for n in range(6)] and result["uncaptioned"] == 0
    assert len(chat.requests) == 6 + 2 * 5


def test_one_refused_empty_or_slow_answer_is_that_clips_alone(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", [*SHAPES, SHAPES[0]])

    def respond(request, number):
        clip = clip_of(request)
        if clip == 5:
            time.sleep(1.5)
        return {
            0: refusal(400, "the picture is too small"), 1: answer(""), 2: answer("no", "content_filter"),
            3: answer("A red ball. It rolls to the", "length"), 6: (200, {"error": {"message": "busy"}}, {}),
        }.get(clip, answer(f"clip {clip}"))  # fmt: skip

    with chat_server(respond) as chat:
        result = recaption(clips, tmp_path / "out", captioner(server(chat, timeout_s=1.0, max_retries=0)))
    assert texts(tmp_path / "out") == [[], [], [], ["A red ball."], ["clip 4"], [], []]
    assert result["uncaptioned"] == 5
    lines = (tmp_path / "out/uncaptioned.jsonl").read_text().splitlines()
    reasons = ("status 400 (the picture is too small)", "empty", "filter", "does not answer", "no choices")
    assert [reason in line for line, reason in zip(lines, reasons, strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The ball is red. The ball is 1.5", "The ball is red."),
        ("Is it 1.5? Yes! It is wide, e.", "Is it 1.5? Yes! It is wide, e."),
        ("球是红的。它往", "球是红的。"),
        ("The ball is 1.5", ""),
        ("<think>It moves. Does it? Yes.</think>\nA ball. It", "A ball."),
    ],
)
def test_an_answer_that_was_cut_off_ends_with_its_last_full_sentence(text, kept):
    with chat_server(lambda request, n: answer(text, "length")) as chat:
        expand = expander(server(chat, max_tokens=9))
        if kept:
            assert expand(["a ball"]) == [kept]
        else:
            with pytest.raises(UserError, match="cut off after 9 tokens: raise --max_tokens"):
                expand(["a ball"])


def test_what_a_server_leaves_null_costs_no_other_clip(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)

    def respond(request, number):
        status, body, headers = answer(f"clip {clip_of(request)}")
        if clip_of(request) == 0:
            body["choices"][0]["message"] = None
        if clip_of(request) == 1:
            body["usage"] = dict.fromkeys(body["usage"])
        return status, body, headers

    with chat_server(respond) as chat:
        recaption(clips, tmp_path / "out", captioner(server(chat)))
    assert texts(tmp_path / "out") == [[]] + [[f"clip {n}"] for n in range(1, len(SHAPES))]


def test_what_a_model_thought_is_no_answer():
    with (
        chat_server(lambda request, n: answer("<think>The user wants a ball. Maybe", "length")) as chat,
        pytest.raises(UserError, match="still thought: raise --max_tokens"),
    ):
        expander(server(chat))(["a ball"])


def test_an_option_that_the_server_does_not_take_ends_the_job_at_its_first_request(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    said = refusal(400, "this model takes none but 1", "temperature")
    with (
        chat_server(lambda request, n: said) as chat,
        pytest.raises(UserError, match=rf"{chat.url}/v1 answers with status 400 \(this model takes none but 1\)"),
    ):
        recaption(clips, tmp_path / "out", captioner(server(chat)))
    assert len(chat.requests) == 1
    with chat_server(lambda request, n: answer("fine") if n != 1 else said) as chat:
        assert recaption(clips, tmp_path / "out", captioner(server(chat)))["uncaptioned"] == 1


def test_a_stopped_job_asks_for_no_caption_twice(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    broken = True

    def respond(request, number):
        if broken and clip_of(request) > 2:
            return refusal(401, "the key has expired")
        return answer(f"clip {clip_of(request)}")

    with chat_server(respond) as chat:
        with pytest.raises(UserError, match=r"status 401 \(the key has expired\): set OPENAI_API_KEY"):
            recaption(clips, tmp_path / "out", captioner(server(chat)))
        broken = False
        result = recaption(clips, tmp_path / "out", captioner(server(chat)))
        asked = [clip_of(request) for request in chat.requests]
    assert asked == [0, 1, 2, 3, 3, 4, 5] and (result["resumed"], result["asked"]) == (3, 3)


def test_requests_are_under_way_at_once_and_no_more_than_asked_for(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", [(1, 16, 16)] * 12)

    def respond(request, number):
        time.sleep(0.1)
        return answer("fine")

    with chat_server(respond) as chat:
        recaption(clips, tmp_path / "out", captioner(server(chat, concurrency=4)))
    assert chat.most_at_once == 4


def test_the_rate_limit_counts_every_try():
    with chat_server(lambda request, n: refusal(429) if n < 3 else answer("long")) as chat:
        prompts = [f"prompt {n}" for n in range(4)]
        assert expander(server(chat, concurrency=4, requests_per_minute=600, max_retries=5))(prompts) == ["long"] * 4
        expand_all = expander(server(chat, concurrency=9, requests_per_minute=1200))
        expand_all(["again"] * 30)
    times = np.array(chat.times[-30:])
    assert times[-1] - times[0] > 0.4  # 20 a second, of which the first 20 may come at once


def test_a_prompt_is_expanded_by_the_language_model():
    def respond(request, number):
        system, user = (message["content"] for message in request["messages"])
        assert "Keep everything" in system
        return answer(f"{user},\nslowly, over grass")

    with chat_server(respond) as chat:
        expand = expander(server(chat, concurrency=3))
        wanted = ["a red ball", "a blue cube"]
        assert expand(wanted) == ["a red ball, slowly, over grass", "a blue cube, slowly, over grass"]

        async def within_a_loop():
            return expand(wanted[:1])

        assert asyncio.run(within_a_loop()) == ["a red ball, slowly, over grass"]
    with (
        chat_server(lambda request, n: answer("")) as chat,
        pytest.raises(UserError, match="empty answer to the prompt"),
    ):
        expander(server(chat))(["a red ball"])


def test_a_server_that_is_not_there_or_has_another_model_is_named():
    with chat_server(lambda request, n: answer("")) as chat:
        server(chat).check()
        with pytest.raises(UserError, match=f"{chat.url}/v1 has no model 'other'; it lists {MODEL}"):
            Server(chat.url, "other").check()
    with pytest.raises(UserError, match=f"no server answers at {chat.url}/v1 .* check that it runs"):
        server(chat).check()
    for other, message in (
        ("<html>hello</html>", "does not speak OpenAI's API"),
        ({"detail": "hello"}, "it lists none"),
    ):
        with chat_server(lambda request, n: answer("")) as chat:
            chat.models = other
            with pytest.raises(UserError, match=message):
                server(chat).check()
    with pytest.raises(UserError, match="must begin with http"):
        Server("localhost:8000", MODEL)
    with pytest.raises(UserError, match="--model"):
        Server("http://localhost:8000", "")
    assert Server("http://host:1/v2/", MODEL).base_url == "http://host:1/v2/"


def test_the_estimate_counts_frames_tokens_and_dollars(tmp_path, clips_in):
    reader = ShardReader(clips_in(tmp_path, [(9, 112, 56), (1, 28, 28), (3, 28, 28)]))
    where = Server("http://localhost:1", MODEL, max_tokens=100)
    who = captioner(where, num_frames=4, long_side=56)
    found = estimate(reader, who, where, None, (10.0, 100.0))
    words = found.input_tokens - (4 * 2 * 1 + 1 + 3)
    assert (found.clips, found.images, found.output_tokens_at_most) == (3, 8, 300)
    assert words == 3 * (len(who.options["template"]) // 4)
    assert found.cost_about == round((10 * found.input_tokens + 100 * 300) / 1e6, 4)
    limited = estimate(reader, who, where, 1, (0.0, 0.0))
    assert (limited.clips, limited.images, limited.cost_about) == (1, 4, None)


@pytest.mark.parametrize("name", ["timeout_s", "temperature", "requests_per_minute"])
def test_a_server_option_that_is_no_number_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is nan"):
        Server("http://localhost:1", MODEL, **{name: float("nan")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{# nothing #}\n", "is empty"),
        ("{{ widht }}", "names widht; it can name num_frames"),
        ("fine\n{% if %}", ":2 is no Jinja template"),
        ("{{ 1 / 0 * width }}", "fails"),
    ],
)
def test_a_bad_template_is_said_before_anything_is_asked(tmp_path, text, message):
    path = tmp_path / "template.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_template(path, CLIP_FACTS)
    with pytest.raises(UserError, match="cannot read the template"):
        read_template(tmp_path / "absent", CLIP_FACTS)
