"""The whole curation: what comes out is right, and the same bytes whoever ran it and whoever was killed."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.curation.config import CurationConfig, FilterConfig, ModelConfig, OutputConfig
from data_pipeline.curation.curate import curate
from data_pipeline.curation.sources import fetched, list_sources
from data_pipeline.engines import Died, LocalEngine, RayEngine
from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import decode_record

LIMITS = FilterConfig(min_duration_s=1.5, min_short_side=32, min_fps=10, min_bits_per_pixel=0, min_sharpness=0)
CONFIG = CurationConfig(filters=LIMITS, output=OutputConfig((0, 48), heldout_fraction=0.0, vocab_size=320))


def data_bytes(folder: Path) -> dict[str, str]:
    """Digest by name of everything in the data sets."""
    files = [path for path in sorted(folder.glob("*/*")) if path.is_file() and path.parent.name != ".staging"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def curated(films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("curated") / "out"
    return out, curate(str(films), str(out), CONFIG, LocalEngine(2))


def test_a_folder_becomes_data_sets_and_a_funnel(curated, films):
    out, found = curated
    outcomes = {
        line["clip_id"]: line["outcome"] for line in map(json.loads, (out / "clips.jsonl").read_text().splitlines())
    }
    assert outcomes == {
        "two.mp4#000000": "kept",
        "two.mp4#000030": "kept",
        "copy.mp4": "duplicates: near duplicate",
        "wide.mp4": "kept",
        "still.mp4": "filters: static",
    }
    assert found["funnel"]["probe"] == {"in": 5, "dropped": {"unreadable": 1}}
    assert found["funnel"]["shots"]["cropped"] == 1 and found["funnel"]["shots"]["cuts"] == 1
    assert "broken.mp4" in (out / "rejected.jsonl").read_text() and "static" in (out / "funnel.html").read_text()
    assert not (out / ".staging").exists()
    native, small = ShardReader(out / "native"), ShardReader(out / "48p")
    assert native.num_records("train") == small.num_records("train") == 3
    for reader in (native, small):
        for number in range(3):
            record = reader.read(number)
            frames, fps = decode_record(record)
            assert len(frames) == 30 and fps == 12
            assert [c.text for c in record.captions] == ["two textures" if "two" in record.clip_id else "a wide one"]
            wide = 72 - 4 if record.clip_id == "wide.mp4" else 72  # twice the inset
            assert frames.shape[1:3] == ((wide, 128) if reader is native else (48, round(48 * 128 / wide / 2) * 2))
    assert curate(str(films), str(out), CONFIG, LocalEngine(1)) == found  # finished: nothing is done again
    with pytest.raises(UserError, match="another --out"):
        curate(str(films), str(out), CurationConfig(), LocalEngine(1))


def test_a_killed_driver_and_a_killed_worker_change_nothing(curated, films, tmp_path):
    """The driver is killed when its first results are there; of the one that goes on, a worker."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.data_pipeline.curation.test_curate import CONFIG\n"
        "from data_pipeline.curation.curate import curate\n"
        "from data_pipeline.engines import LocalEngine\n"
        "if __name__ == '__main__': curate(sys.argv[1], sys.argv[2], CONFIG, LocalEngine(1))\n"
    )
    (tmp_path / "driver.py").write_text(code)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "driver.py"), str(films), str(out)]
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True)
    while not list((out / ".staging").glob("*[0-9a-f]")) and driver.poll() is None:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "funnel.json").exists()
    killed = []

    def kill_a_worker(stage: str, done: int, total: int) -> None:
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    curate(str(films), str(out), CONFIG, LocalEngine(2), on_progress=kill_a_worker)
    assert killed and data_bytes(out) == data_bytes(curated[0])


def dies_once(path: Path) -> str:
    if not path.exists():
        path.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def dies(path: Path) -> str:
    return dies_once(path) if path.name != "always" else os.kill(os.getpid(), signal.SIGKILL) or ""


def test_a_worker_that_dies_costs_only_the_item_that_kills_it(tmp_path):
    names = ["a", "always", "b", "c"]
    assert dict(LocalEngine(2).map(dies, [tmp_path / name for name in names])) == {0: "a", 1: Died(3), 2: "b", 3: "c"}


def fails(frames):
    raise RuntimeError("no such picture")


def brightness(frames):
    return float(frames.mean())


def test_models_score_embed_and_quarantine(films, tmp_path):
    """`scores` by a function of this file; one that raises costs the clips, not the run."""
    here = "tests.data_pipeline.curation.test_curate"
    good = CurationConfig(
        filters=LIMITS, scores={"light": ModelConfig(f"{here}:brightness", 2, least=1.0)}, output=CONFIG.output
    )
    curate(str(films), str(tmp_path / "good"), good, LocalEngine(1))
    reader = ShardReader(tmp_path / "good" / "native")
    assert all(reader.read(number).scores["light"] > 30 for number in range(3))
    bad = CurationConfig(filters=LIMITS, scores={"light": ModelConfig(f"{here}:fails")}, output=CONFIG.output)
    with pytest.raises(UserError, match="no clip of 5 sources is left"):
        curate(str(films), str(tmp_path / "bad"), bad, LocalEngine(1))
    assert "no such picture" in (tmp_path / "bad" / "rejected.jsonl").read_text()


def test_every_layout_gives_the_same_files(films, tmp_path, curated):
    """A metadata file, a WebDataset shard, a Parquet table of bytes, and our own WebDataset output."""
    from pyarrow import Table, parquet

    video = (films / "wide.mp4").read_bytes()
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": str(films / "wide.mp4"), "caption": "a wide one"}))
    (tmp_path / "shards").mkdir()
    (tmp_path / "wide.txt").write_text("a wide one")
    with tarfile.open(tmp_path / "shards" / "x.tar", "w") as tar:
        tar.add(films / "wide.mp4", "wide.mp4")
        tar.add(tmp_path / "wide.txt", "wide.txt")
    (tmp_path / "table").mkdir()
    rows = [{"video": {"bytes": video, "path": "wide.mp4"}, "caption": "a wide one"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "table" / "train-00000.parquet")
    output = OutputConfig((0,), "webdataset", heldout_fraction=0.0, vocab_size=320)
    curate(str(films), str(tmp_path / "tars"), CurationConfig(filters=LIMITS, output=output), LocalEngine(1))
    for inputs in ("list.jsonl", "shards", "table", "tars/native"):
        sources = list_sources(str(tmp_path / inputs))
        last = sources[-1]
        assert [line.text for line in last.lines] == ["a wide one"]
        with fetched(last) as path:
            assert path.read_bytes() == video
    assert len(list_sources(str(tmp_path / "tars/native"))) == 3


def _patient(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to come up, a number of its own; a busy machine may need more, and finds it warm then."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            last = error
    raise last


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray forks its daemons; JAX may be here from other tests
def test_two_ray_nodes_give_the_bytes_of_the_local_pool(curated, films, tmp_path):
    """And so they do when a worker is killed in between, and when a node is removed."""
    import ray
    from ray.cluster_utils import Cluster

    head = dict(num_cpus=1, object_store_memory=200 << 20, include_dashboard=False)
    cluster = _patient(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        node = _patient(lambda: cluster.add_node(num_cpus=1, object_store_memory=200 << 20))
        engine = RayEngine(cluster.address)
        assert engine.workers == 2
        names = ["a", "always", "b"]
        assert dict(engine.map(dies, [tmp_path / name for name in names])) == {0: "a", 1: Died(3), 2: "b"}
        curate(str(films), str(tmp_path / "out"), CONFIG, engine)
        assert data_bytes(tmp_path / "out") == data_bytes(curated[0])
        removed = []

        def remove_a_node(stage: str, done: int, total: int) -> None:
            if not removed:
                removed.append(cluster.remove_node(node))

        curate(str(films), str(tmp_path / "again"), CONFIG, engine, on_progress=remove_a_node)
        assert removed and data_bytes(tmp_path / "again") == data_bytes(curated[0])
        with pytest.raises(UserError, match="the Ray cluster has 0"):
            list(engine.map(brightness, [], accelerators=1))
    finally:
        ray.shutdown()
        cluster.shutdown()
