"""A real HTTP server that speaks the part of OpenAI's chat completions that we use, and misbehaves when told to."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

MODEL = "tiny-vl"
Reply = tuple[int, dict[str, Any], dict[str, str]]


def answer(text: str | None, finish: str = "stop") -> Reply:
    """A completion as servers send it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}
    return 200, body, {}


def refusal(status: int, message: str = "no", param: str | None = None) -> Reply:
    """An error; of those that pass it asks for a short pause."""
    return status, {"error": {"message": message, "type": "error", "param": param}}, {"retry-after-ms": "1"}


def pictures(request: dict[str, Any]) -> list[np.ndarray]:
    """The frames of a request, decoded."""
    parts = [part for part in request["messages"][-1]["content"] if part["type"] == "image_url"]
    data = [part["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for part in parts]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in data]


def clip_of(request: dict[str, Any]) -> int:
    """The number of a clip of `clips_in`, whose first frame is 8 n red."""
    return round(float(pictures(request)[0][..., 0].mean()) / 8)


class ChatServer:
    """`respond(request, number of the request)` makes each reply; `requests` are the bodies that came, in order."""

    def __init__(self, respond: Callable[[dict[str, Any], int], Reply]):
        self.respond, self.requests, self.times = respond, [], []
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        self.url = ""
        self.models: dict[str, Any] | str = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    def reply(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.respond(request, number)
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def chat_server(respond: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """Runs one on a free port of this machine."""
    chat = ChatServer(respond)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, chat.models, {})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(*chat.reply(request))

        def _send(self, status: int, body: dict[str, Any] | str, headers: dict[str, str]) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
