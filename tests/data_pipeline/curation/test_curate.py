"""The whole curation: what comes out is right, and the same bytes whoever ran it and whoever was killed."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from data_pipeline.curation.candidate import Candidate
from data_pipeline.curation.config import CurationConfig, FilterConfig, ModelConfig, OutputConfig
from data_pipeline.curation.curate import curate
from data_pipeline.curation.fetch import fetched
from data_pipeline.curation.funnel import STAGES
from data_pipeline.curation.output import write_outputs
from data_pipeline.curation.sources import list_sources
from data_pipeline.curation.tasks import examine_source, examined_name, load_examined, models_name, render, run_models
from data_pipeline.engines import Died, LocalEngine, RayEngine
from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest, ShardReader
from data_pipeline.storage import Storage
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import decode, decode_record, write_video
from tests.data_pipeline.curation.conftest import scene

HERE = "tests.data_pipeline.curation.test_curate"
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
    assert found["captions_unmatched"] == 1
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


def test_sources_that_are_gone_cost_themselves_only(films, tmp_path):
    """One URL is dead from the start. The other is there for the driver, and not for the workers: fsspec's `memory://`
    is of one process."""
    Storage("memory://leaving").write("two.mp4", (films / "two.mp4").read_bytes())
    paths = [str(films / "wide.mp4"), "memory://leaving/two.mp4", "memory://leaving/dead.mp4", "nowhere.mp4"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(paths))
    found = curate(str(tmp_path / "list.csv"), str(tmp_path / "out"), CONFIG, LocalEngine(1))
    assert found["funnel"]["probe"] == {"in": 4, "dropped": {"unreadable": 3}}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["path"] for line in rejected} == set(paths[1:]) and {line["stage"] for line in rejected} == {"probe"}
    assert sum("fetching it fails: FileNotFoundError" in line["detail"] for line in rejected) == 2
    assert ShardReader(tmp_path / "out" / "native").num_records("train") == 1


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


def darkest_row(frames):
    return float(frames.mean(axis=(0, 2, 3)).min())


def noted_score(frames):
    """Each call is a byte of a file, which other processes can count."""
    with open(f"{os.environ['NOTES']}/score", "a") as file:
        file.write("s")
    return 1.0


def noted_caption(frames):
    with open(f"{os.environ['NOTES']}/caption", "a") as file:
        file.write("c")
    return "a texture that slides"


def no_caption(frames):
    return ""


def test_models_score_embed_and_quarantine(films, tmp_path):
    """`scores` by a function of this file; one that raises costs the clips, not the run."""
    good = CurationConfig(
        filters=LIMITS, scores={"light": ModelConfig(f"{HERE}:brightness", 2, least=1.0)}, output=CONFIG.output
    )
    curate(str(films), str(tmp_path / "good"), good, LocalEngine(1))
    reader = ShardReader(tmp_path / "good" / "native")
    assert all(reader.read(number).scores["light"] > 30 for number in range(3))
    bad = CurationConfig(filters=LIMITS, scores={"light": ModelConfig(f"{HERE}:fails")}, output=CONFIG.output)
    with pytest.raises(UserError, match="no clip of 5 sources is left"):
        curate(str(films), str(tmp_path / "bad"), bad, LocalEngine(1))
    assert "no such picture" in (tmp_path / "bad" / "rejected.jsonl").read_text()


def test_models_see_the_picture_without_its_borders(films, tmp_path):
    scores = {"dark": ModelConfig(f"{HERE}:darkest_row", 3)}
    curate(str(films), str(tmp_path / "out"), dataclasses.replace(CONFIG, scores=scores), LocalEngine(1))
    reader = ShardReader(tmp_path / "out" / "native")
    found = {reader.read(number).clip_id: reader.read(number).scores["dark"] for number in range(3)}
    assert found["wide.mp4"] > 30, found  # its bars are below 1


def test_models_are_given_their_frames_and_no_more_are_kept(tmp_path):
    """Of 120 frames two models ask for six."""
    film = scene(1, num_frames=120, height=144, width=256)
    write_video(tmp_path / "film.mp4", film, 24.0)
    ((source,), _) = list_sources(str(tmp_path))
    clip = Candidate("film.mp4", 0, 120, 24.0, 144, 256, (0, 0, 144, 256), "video/mp4", {}, True)
    run_models({"score first": ModelConfig(f"{HERE}:brightness", 1)}, str(tmp_path / "staging"), (source, (clip,)))
    models = {"score light": ModelConfig(f"{HERE}:brightness", 4), "score dark": ModelConfig(f"{HERE}:darkest_row", 3)}
    tracemalloc.start()
    run_models(models, str(tmp_path / "staging"), (source, (clip,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < film.nbytes / 4
    found = msgpack.unpackb((tmp_path / "staging" / models_name(models, clip, source.stamp)).read_bytes())
    frames, _ = decode(tmp_path / "film.mp4")
    assert found["measures"] == {
        "light": brightness(frames[[0, 40, 79, 119]]),
        "dark": darkest_row(frames[[0, 60, 119]]),
    }


def test_a_source_that_cannot_be_read_any_more_costs_its_clips_and_stages_nothing(tmp_path):
    (tmp_path / "film.mp4").write_text("it changed since it was examined")
    ((source,), _) = list_sources(str(tmp_path))
    clip = Candidate("film.mp4", 0, 120, 24.0, 144, 256, (0, 0, 144, 256), "video/mp4", {}, True)
    models = {"score light": ModelConfig(f"{HERE}:brightness", 4)}
    ((start, why),) = run_models(models, str(tmp_path / "staging"), (source, (clip,)))
    assert start == 0 and "film.mp4" in why and not (tmp_path / "staging").exists()


def funnel_adds_up(funnel: dict[str, Any]) -> bool:
    """What one stage leaves is what the next one gets."""
    left = funnel["shots"]["out"]["clips"]
    for stage in STAGES:
        assert funnel[stage]["in"]["clips"] == left
        left -= sum(gone["clips"] for gone in funnel[stage]["dropped"].values())
        assert funnel[stage]["out"]["clips"] == left
    return list(funnel) == ["probe", "shots", *STAGES]


def test_a_captioner_is_shown_what_stays_and_another_one_costs_no_second_scores(films, tmp_path, monkeypatch):
    """Of five clips, one is still and one a copy."""
    monkeypatch.setenv("NOTES", str(tmp_path))
    noted = dataclasses.replace(CONFIG, scores={"one": ModelConfig(f"{HERE}:noted_score", 2)})
    first = dataclasses.replace(noted, captioner=ModelConfig(f"{HERE}:noted_caption", 2))
    stages = []
    found = curate(
        str(films), str(tmp_path / "first"), first, LocalEngine(1), staging=str(tmp_path / "staging"),
        on_progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert [(tmp_path / name).read_text() for name in ("score", "caption")] == ["ssss", "ccc"]
    assert list(dict.fromkeys(stages)) == ["examine", "models", "duplicates", "captioner", "render"]
    assert funnel_adds_up(found["funnel"]) and found["funnel"]["captioner"]["in"]["clips"] == 3
    record = ShardReader(tmp_path / "first" / "native").read(0)
    assert [(c.text, c.source) for c in record.captions][1:] == [("a texture that slides", f"{HERE}:noted_caption")]
    output = dataclasses.replace(CONFIG.output, require_caption=True)
    strict = dataclasses.replace(noted, captioner=ModelConfig(f"{HERE}:no_caption", 2), output=output)
    (tmp_path / "films").mkdir()
    for name in ("two.mp4", "wide.mp4"):
        (tmp_path / "films" / name).symlink_to(films / name)
    (tmp_path / "films" / "metadata.csv").write_text("file_name,text\nwide.mp4,a wide one\n")
    second = curate(
        str(tmp_path / "films"), str(tmp_path / "second"), strict, LocalEngine(1), staging=str(tmp_path / "staging")
    )
    assert (tmp_path / "score").read_text() == "ssss"
    assert second["funnel"]["captioner"]["dropped"]["no caption"]["clips"] == 2 and funnel_adds_up(second["funnel"])


def test_the_captions_of_copies_go_to_the_clip_that_stays(films, tmp_path):
    """The smaller copy alone has captions; the letterboxed film has none, and is dropped for it."""
    rows = ["copy.mp4,a small texture", "copy.mp4,it slides", "two.mp4,it slides"]
    (tmp_path / "captions.csv").write_text("\n".join(["file_name,text", *rows, ""]))
    cfg = dataclasses.replace(CONFIG, output=dataclasses.replace(CONFIG.output, require_caption=True))
    found = curate(str(films), str(tmp_path / "out"), cfg, LocalEngine(1), captions=tmp_path / "captions.csv")
    assert found["funnel"]["captions"]["dropped"]["no caption"]["clips"] == 1 and funnel_adds_up(found["funnel"])
    reader = ShardReader(tmp_path / "out" / "native")
    captions = {(r := reader.read(number)).clip_id: [c.text for c in r.captions] for number in range(2)}
    assert captions == {"two.mp4#000000": ["it slides", "a small texture"], "two.mp4#000030": ["it slides"]}


def test_sizes_of_a_run_that_died_are_written_anew_if_other_clips_are_left(curated, films, tmp_path):
    """A worker that died has cost a clip; one size is finished, the driver dies before the next one."""
    found, _ = list_sources(str(films))
    sources = {source.source_id: source for source in found}
    source, store = sources["two.mp4"], Storage(tmp_path / "staging")
    examine_source(CONFIG, store.url, source)
    clips = load_examined(store, examined_name(CONFIG, source)).candidates
    render((0,), store.url, (source, clips))
    one_size = dataclasses.replace(CONFIG, output=dataclasses.replace(CONFIG.output, short_sides=(0,)))
    out, key = tmp_path / "out", curated[1]["key"]
    assert write_outputs(clips[:1], sources, one_size, key, None, store, Storage(out))["native"]["train"] == 1
    assert curate(str(films), str(out), CONFIG, LocalEngine(1)) == curated[1]
    assert data_bytes(out) == data_bytes(curated[0])


def test_a_curation_takes_the_tokenizer_of_another_data_set(curated, films, tmp_path):
    """From its file, or from a data set that was curated with it."""
    file = tmp_path / "tokenizer.model"
    theirs = Tokenizer.train(["a few other words"], 320, file)

    def run(out: str, tokenizer: Path) -> Manifest:
        output = dataclasses.replace(CONFIG.output, tokenizer=str(tokenizer))
        curate(str(films), str(tmp_path / out), dataclasses.replace(CONFIG, output=output), LocalEngine(1))
        return ShardReader(tmp_path / out / "native").manifest

    assert ShardReader(curated[0] / "native").manifest.tokenizer_fingerprint != theirs.fingerprint
    assert run("one", file).tokenizer_fingerprint == theirs.fingerprint
    assert run("two", tmp_path / "one" / "native").tokenizer_fingerprint == theirs.fingerprint
    caption = ShardReader(tmp_path / "two" / "native").read(0).captions[0]
    assert caption.num_tokens == theirs.num_tokens(caption.text)
    with pytest.raises(UserError, match="cannot read the tokenizer .*absent"):
        run("three", tmp_path / "absent")
    Tokenizer.train(["something else"], 320, file)
    with pytest.raises(UserError, match="another --out"):
        run("one", file)


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
        sources, _ = list_sources(str(tmp_path / inputs))
        last = sources[-1]
        assert [line.text for line in last.lines] == ["a wide one"]
        with fetched(last) as path:
            assert path.read_bytes() == video
    assert len(list_sources(str(tmp_path / "tars/native"))[0]) == 3


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
