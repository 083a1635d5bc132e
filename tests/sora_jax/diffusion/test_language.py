"""Negative prompts take the empty caption's place; prompts are never cut."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.packing import stack_rows
from sora_jax.diffusion.denoiser import SamplingConfig, without_text
from sora_jax.diffusion.generation import Request
from tests.sora_jax.diffusion.tiny_sampler import make_sampler

GUIDED = SamplingConfig(num_steps=2, guidance=4.0)
PROMPTS = ("a red ball", "", "a ball moves left")


def request(prompt: str = "a ball", negative: str = "", seed: int = 0) -> Request:
    return Request(prompt, 16, 16, 5, 8.0, seed, negative_prompt=negative)


def generate(*requests: Request, sampling: SamplingConfig = GUIDED) -> list[np.ndarray]:
    sampler, params = make_sampler()
    found = dict(sampler.generate(params, {}, list(requests), sampling))
    return [found[n] for n in range(len(requests))]


def test_an_empty_negative_prompt_is_the_empty_caption():
    sampler, _ = make_sampler()
    requests = [request(p) for p in PROMPTS]
    row = sampler._row(requests, range(3))
    expected = without_text({k: jnp.asarray(v[None]) for k, v in row.items()}, sampler.tokenizer.eos_id)
    for name, values in sampler._negative_text(requests).items():
        np.testing.assert_array_equal(expected[name.removeprefix("negative_")][0], values)


def test_a_negative_prompt_acts_on_its_own_sample_alone():
    plain, also = generate(request(), request("a red ball", seed=1))
    away, same = generate(request(negative="a red ball moves left"), request("a red ball", seed=1))
    assert not np.array_equal(plain, away)
    assert np.abs(also.astype(int) - same.astype(int)).max() <= 1


def test_guidance_away_from_the_prompt_itself_leads_nowhere():
    (guided,) = generate(request("a red ball", negative="a red ball"))
    (plain,) = generate(request("a red ball"), sampling=SamplingConfig(num_steps=2, guidance=1.0))
    assert np.abs(guided.astype(int) - plain.astype(int)).max() <= 1


def test_long_negative_prompts_share_no_row_that_cannot_hold_them():
    sampler, _ = make_sampler()
    words = " ".join(["ball"] * 20)
    assert sampler.pack([request(), request()]) == [[0, 1]]
    assert sampler.pack([request(negative=words), request(negative=words)]) == [[0], [1]]


def test_a_row_grows_to_a_long_prompt_and_a_longer_one_is_refused_with_both_numbers(caplog):
    sampler, params = make_sampler()
    long = " ".join(["ball"] * 400)
    count = len(sampler.text_ids(long))
    with caplog.at_level(logging.WARNING):
        wide = sampler.fitting([request(long)])
    assert wide.layout.row_text == count > sampler.layout.row_text
    assert f"have up to {count} tokens; training rows held {sampler.layout.row_text}" in caplog.text
    batch = stack_rows([wide._row([request(long)], [0])])
    assert np.count_nonzero(batch["text_segment_ids"]) == count, "every token is in the row"
    for prompt, negative in ((" ".join(["ball"] * 512), ""), ("a", " ".join(["ball"] * 512))):
        with pytest.raises(UserError, match="has 513 tokens, but at most 512 can be read"):
            next(sampler.generate(params, {}, [request(prompt, negative)], GUIDED))


@pytest.mark.parametrize(("prompt", "foreign"), [("赤い円が動く", True), ("a ball", False), ("", False)])
def test_words_that_the_tokenizer_never_learned_are_known(prompt, foreign):
    assert make_sampler()[0].is_foreign(prompt) == foreign


def test_a_batch_depends_on_no_later_request():
    sampler, _ = make_sampler()
    requests = [request(PROMPTS[i % 3], seed=i) for i in range(17)]
    batches = list(sampler.batches(requests, 2))
    assert sorted(n for rows in batches for row in rows for n in row) == list(range(17))
    assert list(sampler.batches(requests[:11], 2))[:-1] == batches[: len(list(sampler.batches(requests[:11], 2))) - 1]
    assert [len(rows) for rows in batches[:-1]] == [2] * (len(batches) - 1)
