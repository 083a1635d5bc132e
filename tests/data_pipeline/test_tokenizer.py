import pickle
import random

import pytest

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer

CORPORA = {
    "empty": [],
    "blank": ["", " \n\t"],
    "one letter": ["a"],
    "reserved symbol": ["▁▁"],
    "control characters": ["\x00\x01"],
    "one sentence": ["a red ball moves left"],
    "repeated": ["the same words"] * 500,
    "many scripts": ["мяч летит", "赤いボール", "كرة حمراء", "🙂 ball"],
}
SENTENCES = ["a red ball", "a red ball", "мяч 赤い 🙂", "never seen: Zürich", ""]


@pytest.mark.parametrize("texts", CORPORA.values(), ids=CORPORA.keys())
def test_any_corpus_trains_and_no_text_is_out_of_vocabulary(texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts)
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence)
        assert tokenizer.decode(ids) == sentence
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.eos_id not in ids
        assert tokenizer.num_tokens(sentence) == len(ids) + 1


def test_more_characters_than_pieces_fall_back_to_bytes() -> None:
    rng = random.Random(0)
    texts = ["".join(chr(0x4E00 + rng.randrange(8_000)) for _ in range(20)) for _ in range(1_000)]
    tokenizer = Tokenizer.train(texts, vocab_size=500)
    assert tokenizer.vocab_size <= 500
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_training_is_deterministic_and_survives_files_and_pickles(tmp_path) -> None:
    texts = [f"clip {n} shows a thing that moves {'left' if n % 2 else 'right'}" for n in range(200)]
    first = Tokenizer.train(iter(texts), 400, tmp_path / "tokenizer.model")
    assert Tokenizer.train(texts, 400).fingerprint == first.fingerprint
    assert Tokenizer.load(tmp_path / "tokenizer.model").fingerprint == first.fingerprint
    assert pickle.loads(pickle.dumps(first)).encode(texts[7]) == first.encode(texts[7])


def test_frequent_words_become_few_pieces() -> None:
    tokenizer = Tokenizer.train(["the robot picks up the white mug"] * 50 + ["the robot moves"] * 50, 1_000)
    assert len(tokenizer.encode("the robot")) < len("the robot")


def test_bad_files_are_user_errors(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path / "absent.model")
    (tmp_path / "damaged.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer.load(tmp_path / "damaged.model")
    with pytest.raises(UserError, match="vocab_size is 10"):
        Tokenizer.train(["a"], 10)


def test_the_t5_tokenizer_loads(shared_data) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "t5_base_spiece.model")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (1, 32_000)
