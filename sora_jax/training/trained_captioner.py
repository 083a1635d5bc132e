"""The captioner that a run has come to, as something that writes captions of clips.

TrainedCaptioner.from_run(Path("runs/captioner")).captions([frames, …])  # uint8 [T, Y, X, 3] each → ["a red …", …]
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from data_pipeline.caption_messages import full_sentences
from data_pipeline.caption_stream import CaptionStreamConfig, on_canvas, spread
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.models.captioner import CaptionerConfig, apply
from sora_jax.objectives.captioner import model_config, stream_config, texts_of
from sora_jax.parallel import DATA, batch_shardings, make_mesh, state_shardings
from sora_jax.training.checkpoint import load_params
from sora_jax.training.trained_tokenizer import trained_tokenizer

Clip = UInt8[np.ndarray, "_ _ _ 3"]
"""`[T, Y, X, 3]`; the clips of a list differ in shape."""
MICRO_BATCH = {"cpu": 16, "gpu": 128, "tpu": 128}
"""Clips that a device captions at a time."""


@dataclasses.dataclass(frozen=True)
class TrainedCaptioner:
    """A captioner's parameters (the EMA) on `mesh`, this process's devices, each of which captions clips of its own.

    Programs always run on `micro_batch` clips a device, the last of them filled up: one compilation. `step` is the
    checkpoint's.
    """

    model: CaptionerConfig
    params: Any
    tokenizer: Tokenizer
    stream: CaptionStreamConfig
    step: int
    mesh: Mesh
    micro_batch: int

    @classmethod
    def from_run(
        cls, run: Path, step: int | None = None, *, clips: Path | None = None, micro_batch: int = 0
    ) -> "TrainedCaptioner":
        """The captioner of a run at its newest checkpoint, or at `step`. `clips` holds the tokenizer, if the clips that
        it was trained on have moved; `micro_batch` 0 is the platform's usual one.

        Raises UserError for a run of something else, without a good checkpoint, or another tokenizer.
        """
        mesh = make_mesh({DATA: jax.local_device_count()}, jax.local_devices())
        loaded = load_params(run, step, shardings=lambda shapes: state_shardings(shapes, mesh))
        if "captioner" not in loaded.params:
            raise UserError(f"{run} is no captioner's run: it trained {', '.join(loaded.params)}")
        tokenizer = trained_tokenizer(run, loaded, clips and clips / "tokenizer.model")
        model = model_config(loaded.config.get("model", {}), tokenizer.vocab_size)
        micro_batch = micro_batch or MICRO_BATCH[mesh.devices.flat[0].platform]
        params, stream = loaded.params["captioner"], stream_config(loaded.config)
        return cls(model, params, tokenizer, stream, loaded.step, mesh, micro_batch)

    def captions(self, clips: Sequence[Clip]) -> list[str]:
        """A caption of each clip: uint8 `[T, Y, X, 3]` of any length and size, looked at as in training. One without an
        end within `stream.max_tokens` tokens is cut to its last full sentence; empty where there is none."""
        return list(self.stream_captions(clips))

    def stream_captions(self, clips: Iterable[Clip]) -> Iterator[str]:
        """The same for any number of clips, of which one batch is in memory at a time."""
        return (full_sentences(text) if is_cut else text for text, is_cut in self.stream_written(clips))

    def stream_written(self, clips: Iterable[Clip]) -> Iterator[tuple[str, bool]]:
        """All that is written of each, and whether it did not end by itself."""
        clips, num_rows = iter(clips), self.micro_batch * self.mesh.size
        while batch := [spread(clip, self.stream.canvas) for clip in islice(clips, num_rows)]:
            filled = batch + [batch[-1]] * (num_rows - len(batch))
            video = np.stack([on_canvas(clip, self.stream.canvas) for clip in filled])
            rows = {"video": video, "extents": np.asarray([clip.shape[:3] for clip in filled], np.int32)}
            with jax.set_mesh(self.mesh):
                ids, lengths = self._write(self.params, jax.device_put(rows, batch_shardings(rows, self.mesh)))
            ids, lengths = np.asarray(ids)[: len(batch)], np.asarray(lengths)[: len(batch)]
            is_cut = (lengths == self.stream.max_tokens).tolist()
            yield from zip(texts_of(self.tokenizer, ids, lengths), is_cut, strict=True)

    @functools.cached_property
    def _write(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        model, most, end = self.model, self.stream.max_tokens, self.tokenizer.eos_id

        @jax.jit
        def write(params: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            found = apply(model, params).caption(jnp.asarray(rows["video"]), rows["extents"], most, end)
            return found.ids, found.lengths

        return write
