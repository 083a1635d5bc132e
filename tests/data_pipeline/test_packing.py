import dataclasses
import itertools

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.packing import (
    RowLayout,
    SampleInput,
    pack_row,
    patchify,
    row_spec,
    segment_offsets,
    stack_rows,
    token_positions,
    unpack_tokens,
    unpatchify,
)

LAYOUT = RowLayout(
    row_tokens=64, row_text=12, row_segments=4, patch_size=(1, 2, 2), channels=3, reference_latent_rate=6.0
)


def sample(shape: tuple[int, int, int], text_ids: tuple[int, ...] = (2,), fps: float = 24.0, **more) -> SampleInput:
    latents = np.random.default_rng(sum(shape)).normal(size=(*shape, 3)).astype(np.float32)
    return SampleInput(shape=shape, fps=fps, temporal_compression=4, text_ids=text_ids, latents=latents, **more)


@pytest.mark.parametrize("patch_size", [(1, rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 4)])
def test_unpatchify_inverts_patchify(patch_size: tuple[int, int, int]) -> None:
    latents = np.random.default_rng(0).normal(size=(3, 6, 8, 5))
    tokens = patchify(latents, patch_size)
    assert tokens.shape == (3 * 6 * 8 // np.prod(patch_size), 5 * np.prod(patch_size))
    assert np.array_equal(unpatchify(tokens, latents.shape, patch_size), latents)


def test_token_and_value_order() -> None:
    """Tokens: frame, row, column; values within: row, column, channel, the last fastest."""
    latents = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = patchify(latents, (1, 2, 2))
    for token, (f, r, c) in zip(tokens, itertools.product(range(2), range(2), range(3)), strict=True):
        expected = [latents[f, 2 * r + i, 2 * c + j, k] for i in (0, 1) for j in (0, 1) for k in range(3)]
        assert token.tolist() == expected


def test_an_odd_edge_is_cropped() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 5, 7, 3))
    tokens = patchify(latents, (1, 2, 2))
    assert np.array_equal(unpatchify(tokens, latents.shape, (1, 2, 2)), latents[:, :4, :6])
    assert len(tokens) == LAYOUT.num_tokens(latents.shape)


def test_positions_are_seconds_times_the_reference_rate_and_latent_units() -> None:
    positions = token_positions(sample((3, 4, 6), fps=12.0), LAYOUT)
    grid = positions.reshape(3, 2, 3, 3)
    assert grid[:, 0, 0, 0].tolist() == [0.0, 2.0, 4.0]  # 4 frames at 12 a second are 1/3 s
    assert grid[0, :, 0, 1].tolist() == [0.0, 2.0]
    assert grid[0, 0, :, 2].tolist() == [0.0, 2.0, 4.0]


def test_a_row_holds_its_samples_and_they_come_back() -> None:
    known = np.zeros((3, 2, 2), bool)
    known[0] = True
    samples = [sample((3, 4, 4), (7, 8, 2), known=known, sample_id=41), sample((1, 6, 5), (2,)), sample((2, 2, 2))]
    row = pack_row(samples, LAYOUT)
    assert {name: (array.shape, array.dtype) for name, array in row.items()} == row_spec(LAYOUT)
    offsets = segment_offsets(row["sample_tokens"])
    for segment, one in enumerate(samples):
        back = unpack_tokens(row["tokens"], offsets[segment], one.shape, LAYOUT.patch_size)
        assert np.array_equal(back, one.latents[:, : back.shape[1], : back.shape[2]])
        mine = row["segment_ids"] == segment + 1
        assert mine.sum() == row["sample_tokens"][segment] == LAYOUT.num_tokens(one.shape)
        assert np.array_equal(row["positions"][mine], token_positions(one, LAYOUT))
        assert row["text_ids"][row["text_segment_ids"] == segment + 1].tolist() == list(one.text_ids)
        groups = row["noise_group_ids"][mine] - 2 * segment
        assert np.array_equal(groups, (known.reshape(-1) if one.known is not None else 0 * groups))
    assert row["sample_ids"].tolist() == [41, -1, -1, -1]
    assert row["text_positions"].tolist()[:5] == [0, 1, 2, 0, 0]


def test_ids_ascend_and_padding_is_zero() -> None:
    row = pack_row([sample((2, 4, 4)), sample((1, 4, 4))], LAYOUT)
    assert (np.diff(row["segment_ids"][:12]) >= 0).all()
    for name in ("tokens", "segment_ids", "positions", "noise_group_ids"):
        assert not row[name][12:].any()
    for name in ("text_ids", "text_segment_ids", "text_positions"):
        assert not row[name][2:].any()


def test_the_order_of_samples_only_moves_them() -> None:
    first, second = sample((2, 4, 4), (5, 2)), sample((3, 2, 6), (6, 7, 2))
    one, other = pack_row([first, second], LAYOUT), pack_row([second, first], LAYOUT)
    for name in ("tokens", "positions"):
        assert np.array_equal(one[name][one["segment_ids"] == 2], other[name][other["segment_ids"] == 1])


def test_a_canvas_without_latents_is_zero() -> None:
    row = pack_row([dataclasses.replace(sample((2, 4, 4)), latents=None)], LAYOUT)
    assert not row["tokens"].any() and row["segment_ids"].any()


def test_an_empty_row_is_padding() -> None:
    batch = stack_rows([pack_row([], LAYOUT)] * 2)
    assert batch["tokens"].shape == (2, 64, 12)
    assert not batch["segment_ids"].any() and (batch["sample_ids"] == -1).all()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample((9, 8, 8))], "need 144 of row_tokens, but a row has 64"),
        ([sample((1, 2, 2), (3,) * 13)], "need 13 of row_text, but a row has 12"),
        ([sample((1, 2, 2))] * 5, "need 5 of row_segments, but a row has 4"),
        ([sample((1, 1, 2))], "all must be above 0"),
        ([sample((1, 2, 2), ())], "all must be above 0"),
        ([sample((1, 4, 4), known=np.zeros((1, 4, 4), bool))], "known mask of"),
        ([dataclasses.replace(sample((1, 4, 4)), shape=(1, 4, 6))], "latents of shape"),
    ],
)
def test_what_does_not_fit_is_a_user_error(samples: list[SampleInput], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack_row(samples, LAYOUT)
