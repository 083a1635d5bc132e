"""Captions and long prompts from any server that speaks OpenAI's chat completions: vLLM, SGLang, OpenAI's own …

The client is `openai` (extra `server`), which tries again what fails in passing (429, 5xx, lost connections) with
growing pauses, or those that the server asks for. Every try counts for the rate limit. What the server refuses for one
clip is that clip's; what it would refuse for all (no key, no such model) ends the job.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data_pipeline.caption_messages import (
    CLIP_FACTS,
    DESCRIBE_CLIP,
    EXPAND_PROMPT,
    JPEG_QUALITY,
    Message,
    clip_message,
    full_sentences,
    prompt_messages,
    read_template,
)
from data_pipeline.errors import UserError
from data_pipeline.recaption import CaptionWriter, ClipView, Describe, Refused, show
from data_pipeline.shards import ShardReader

PATCH_PX, CHARACTERS_PER_TOKEN = 28, 4
"""Of an image one token a patch of so many pixels, as Qwen2-VL counts; of English text one for so many characters."""
CHECK_TIMEOUT_S = 10.0
OPTIONS = ("max_completion_tokens", "max_tokens", "temperature")
"""What a server calls the options of a request."""

Ask = Callable[[Sequence[Message]], Awaitable[str]]


@dataclass
class Usage:
    """What the server says that it read and wrote."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Server:
    """Where the server is, and how it is asked. The key is `OPENAI_API_KEY`, "none" without one.

    `requests_per_minute` 0: no limit. `temperature` None: the server's own, for models that take none.
    """

    url: str
    model: str
    concurrency: int = 8
    requests_per_minute: float = 0.0
    max_retries: int = 6
    timeout_s: float = 120.0
    max_tokens: int = 300
    temperature: float | None = 0.0
    usage: Usage = field(default_factory=Usage, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"the server's address is '{self.url}', but must begin with http:// or https://")
        if not self.model.strip():
            raise UserError("name the server's model, with --model")
        for name, least in dict(concurrency=1, requests_per_minute=0, max_retries=0, max_tokens=1).items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if not 0 < self.timeout_s < math.inf:
            raise UserError(f"timeout_s is {self.timeout_s}, but must be above 0, and a number")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}, but must be at least 0, or None for the server's own")

    @property
    def base_url(self) -> str:
        """The address with `/v1`, unless it has a path of its own."""
        return self.url if urlsplit(self.url).path.strip("/") else f"{self.url.rstrip('/')}/v1"

    def check(self) -> None:
        """Raises UserError unless the server answers and lists the model; a server without a list is taken as it is."""
        openai = _openai()
        with openai.OpenAI(base_url=self.base_url, api_key=_key(), timeout=CHECK_TIMEOUT_S, max_retries=1) as client:
            try:
                names = [model.id for model in client.models.list()]
            except openai.APIConnectionError as error:
                raise UserError(
                    f"no server answers at {self.base_url} ({error.__cause__ or error}): check that it runs, the host "
                    "and port, and that nothing between here and there blocks them"
                ) from error
            except openai.NotFoundError:
                return
            except openai.APIStatusError as error:
                raise UserError(f"the server at {self.base_url} {_said(error)}") from error
            except (openai.APIError, ValueError, AttributeError, TypeError) as error:  # a page, or other JSON
                raise UserError(
                    f"what answers at {self.base_url} does not speak OpenAI's API: check the address, /v1 included"
                ) from error
        if self.model not in names:
            listed = ", ".join(sorted(names)) or "none"
            raise UserError(f"the server at {self.base_url} has no model '{self.model}'; it lists {listed}")

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        """The function that asks: messages → the answer's text. It raises `Refused` for one that has none."""
        openai, limiter = _openai(), _limiter(self.requests_per_minute)

        async def wait(request: object) -> None:
            if limiter is not None:
                await limiter.acquire()

        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [wait]})
        async with openai.AsyncOpenAI(
            base_url=self.base_url, api_key=_key(), timeout=self.timeout_s, max_retries=self.max_retries,
            http_client=http,
        ) as client:  # fmt: skip
            yield lambda messages: self._ask(client, messages)

    def _is_of_all(self, error: Any) -> bool:
        """Whether a server that has answered nothing so far complains about an option, which all requests have."""
        named = f"{error.param} {error.message}"
        return error.status_code == 400 and not self.usage.requests and any(name in named for name in OPTIONS)

    async def _ask(self, client: Any, messages: Sequence[Message]) -> str:
        openai = _openai()
        options: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        try:
            answer = await client.chat.completions.create(
                model=self.model, messages=list(messages), max_completion_tokens=self.max_tokens, **options
            )
        except openai.APIConnectionError as error:
            raise Refused(f"the server at {self.base_url} does not answer ({error.__cause__ or error})") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(f"the server at {self.base_url} {_said(error)}") from error
        except openai.APIStatusError as error:
            if self._is_of_all(error):
                raise UserError(f"the server at {self.base_url} {_said(error)}") from error
            raise Refused(f"the server {_said(error)}") from error
        except (openai.APIError, ValueError) as error:
            raise Refused(f"the server's answer is no completion ({error})") from error
        self.usage.requests += 1
        if usage := getattr(answer, "usage", None):
            self.usage.input_tokens += usage.prompt_tokens or 0
            self.usage.output_tokens += usage.completion_tokens or 0
        return _text(answer, self.max_tokens)


def captioner(
    server: Server, path: Path | str | None = None, source: str = "", language: str = "en", num_frames: int = 8,
    long_side: int = 512,
) -> CaptionWriter:  # fmt: skip
    """Captions from a vision-language model that is shown frames as JPEG. Raises UserError for a bad template."""
    template = read_template(path or DESCRIBE_CLIP, CLIP_FACTS)

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Describe]:
        async with server.opened() as ask:

            async def describe(clips: Sequence[ClipView]) -> list[str]:
                (clip,) = clips
                return [await ask([await asyncio.to_thread(clip_message, clip, template)])]

            yield describe

    options = {
        "model": server.model, "template": template.text, "max_tokens": server.max_tokens,
        "temperature": server.temperature, "num_frames": num_frames, "long_side": long_side,
        "jpeg_quality": JPEG_QUALITY,
    }  # fmt: skip
    name = source or server.model
    look = partial(show, num_frames=num_frames, long_side=long_side)
    return CaptionWriter(name, opened, look, options, 1, server.concurrency, language)


def expander(server: Server, path: Path | str | None = None) -> Callable[[Sequence[str]], list[str]]:
    """Short prompts → long ones, from a language model. Raises UserError for a bad template; the function does for a
    prompt that gets no answer."""
    template = read_template(path or EXPAND_PROMPT, ("prompt",))

    async def expand_all(prompts: Sequence[str]) -> list[str]:
        at_once = asyncio.Semaphore(server.concurrency)

        async def expand(ask: Ask, prompt: str) -> str:
            async with at_once:
                text = " ".join((await ask(prompt_messages(prompt, template))).split())
            if not text:
                raise UserError(f"the server at {server.base_url} has an empty answer to the prompt '{prompt[:60]}'")
            return text

        async with server.opened() as ask:
            return list(await asyncio.gather(*(expand(ask, prompt) for prompt in prompts)))

    # In a thread of its own: a notebook's has a loop that runs already.
    def expand_here(prompts: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(expand_all(prompts))).result()

    return expand_here


@dataclass(frozen=True)
class Estimate:
    """What captioning will take about, and cost if prices in dollars a million tokens are given. Tokens are counted one
    way of many: `PATCH_PX`, `CHARACTERS_PER_TOKEN`, and answers as long as they may be; none for tries again."""

    clips: int
    images: int
    input_tokens: int
    output_tokens_at_most: int
    cost_about: float | None


def estimate(
    reader: ShardReader, captioner: CaptionWriter, server: Server, limit: int | None, prices: tuple[float, float]
) -> Estimate:
    """Of the first `limit` clips, from the index alone: clips that have a caption of this source already count too."""
    count = min(reader.num_records(), limit or reader.num_records())
    frames = reader.index.frames[:count]
    sides = np.stack([reader.index.height[:count], reader.index.width[:count]]).astype(np.float64)
    most, side = captioner.options["num_frames"], captioner.options["long_side"]
    sides *= np.minimum(1.0, side / sides.max(0)) if side else 1.0
    images = np.minimum(frames, most) if most else frames
    words = len(str(captioner.options["template"])) // CHARACTERS_PER_TOKEN
    input_tokens = int((images * np.ceil(sides / PATCH_PX).prod(0)).sum()) + count * words
    output_tokens = count * server.max_tokens
    cost = (prices[0] * input_tokens + prices[1] * output_tokens) / 1e6 if any(prices) else None
    return Estimate(count, int(images.sum()), input_tokens, output_tokens, None if cost is None else round(cost, 4))


def _text(answer: Any, max_tokens: int) -> str:
    """The text of an answer, without what the model thought before it, and up to its last full sentence if it was cut
    short. Raises `Refused` for an answer that is none."""
    choices = getattr(answer, "choices", None)
    if not choices:
        raise Refused("the server's answer is no completion: it has no choices")
    choice = choices[0]
    if choice.message is None:
        raise Refused("the server's answer is no completion: its choice has no message")
    if choice.finish_reason == "content_filter" or choice.message.refusal:
        raise Refused(f"the model refused it: {choice.message.refusal or 'a content filter'}")
    text = (choice.message.content or "").rpartition("</think>")[2]
    if "<think>" in text:
        raise Refused("the answer was cut off while the model still thought: raise --max_tokens")
    text = text.strip()
    if choice.finish_reason == "length":
        text = full_sentences(text)
        if not text:
            raise Refused(f"the answer was cut off after {max_tokens} tokens: raise --max_tokens")
    return text


def _said(error: Any) -> str:
    """What a server's error says, on one line."""
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)[:300]
    hint = ": set OPENAI_API_KEY to a key that it takes" if error.status_code in (401, 403) else ""
    return f"answers with status {error.status_code} ({message}){hint}"


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _limiter(requests_per_minute: float) -> Any:
    """A leaky bucket that lets the first second's share through at once; None without a limit."""
    if not requests_per_minute:
        return None
    from aiolimiter import AsyncLimiter

    return AsyncLimiter(max(1.0, requests_per_minute / 60), max(1.0, 60 / requests_per_minute))


def _openai() -> Any:
    """The client's package, which only this needs."""
    try:
        import openai
    except ImportError as error:
        raise UserError("a caption server needs the package openai: pip install 'sora-jax[server]'") from error
    return openai
