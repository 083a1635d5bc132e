"""Curation from a bucket into a bucket: servers of S3 and of Google Cloud Storage (moto's and an emulator), and
fsspec's real clients. These read the endpoint and the keys from the environment, as a user gives them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from data_pipeline.curation.curate import curate
from data_pipeline.engines import LocalEngine
from data_pipeline.errors import UserError
from data_pipeline.storage import Storage
from tests.data_pipeline.curation.test_curate import CONFIG, data_bytes

pytestmark = pytest.mark.buckets


@contextmanager
def s3(patch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield "s3"
    server.stop()


@contextmanager
def gs(patch: pytest.MonkeyPatch) -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("localhost", 0)) as found:
        port = found.getsockname()[1]
    server = create_server("localhost", port, in_memory=True)
    server.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks a service that the emulator does not have
    patch.setenv("FSSPEC_GS_TOKEN", "anon")
    patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    yield "gs"
    server.stop()


@pytest.fixture(scope="module", params=[s3, gs], ids=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket."""
    with pytest.MonkeyPatch.context() as patch, request.param(patch) as protocol:
        fsspec.filesystem(protocol).mkdir("films")
        yield f"{protocol}://films"


def test_a_bucket_is_curated_into_a_bucket_with_the_bytes_of_a_folder(films: Path, bucket: str, tmp_path: Path):
    inputs = Storage(f"{bucket}/in")
    for path in films.iterdir():
        inputs.upload(path, path.name)
    local = curate(str(films), str(tmp_path / "local"), CONFIG, LocalEngine(1))
    remote = curate(inputs.url, f"{bucket}/out", CONFIG, LocalEngine(2))
    assert remote["funnel"] == local["funnel"]
    target = Storage(f"{bucket}/out")
    assert not any(name.startswith(".staging") for name in target.names())
    for name in target.names():
        file = tmp_path / "remote" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        target.download(name, file)
    shards, wanted = data_bytes(tmp_path / "remote"), data_bytes(tmp_path / "local")
    for name in ("native/manifest.json", "48p/manifest.json"):  # they say what the sources' stamps were: times, ETags
        assert shards.pop(name) != wanted.pop(name)
    assert shards == wanted and len(shards) == 6
    again = curate(inputs.url, f"{bucket}/out", CONFIG, LocalEngine(1))
    assert again == json.loads(target.read("funnel.json"))


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path):
    nowhere = bucket.replace("films", "nowhere")
    with pytest.raises(UserError, match=nowhere):
        curate(f"{nowhere}/in", str(tmp_path / "out"), CONFIG, LocalEngine(1))
