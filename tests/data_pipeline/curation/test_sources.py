"""What is listed of each layout: nothing is lost in silence, and what cannot be read costs only itself."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data_pipeline.curation.candidate import Candidate
from data_pipeline.curation.config import CurationConfig
from data_pipeline.curation.fetch import Unfetched, fetched
from data_pipeline.curation.sources import Source, list_sources
from data_pipeline.curation.tasks import examine_source, render
from data_pipeline.errors import UserError
from data_pipeline.storage import Storage


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def texts(sources: Sequence[Source]) -> dict[str, list[str]]:
    return {source.source_id: [line.text for line in source.lines] for source in sources}


def problems(sources: Sequence[Source]) -> dict[str, str]:
    return {source.source_id: source.problem for source in sources if source.problem}


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """A folder that is not on a disk."""
    store = Storage(f"memory://{request.node.name}")
    yield store
    store.clear()


def test_of_several_files_with_one_key_the_videos_are_the_sources(tmp_path):
    names = ["000.mp4", "000.jpg", "001.mp4", "001.m4a", "002.MKV", "002.cls", "003.png", "003.cls", "004.mp4",
             "004.webm", "005.emb", "006.mp4", "006.mp4"]  # fmt: skip
    members = [(name, f"{number} {name}".encode()) for number, name in enumerate(names)]
    sources, _ = list_sources(str(write_tar(tmp_path / "x.tar", [*members, ("000.txt", b"a caption")])))
    assert [source.source_id.removeprefix("x.tar/") for source in sources] == [
        "000.mp4", "001.mp4", "002.MKV", "003.png", "004.mp4", "004.webm", "005.emb", "006.mp4",
    ]  # fmt: skip
    assert texts(sources)["x.tar/000.mp4"] == ["a caption"]
    with fetched(sources[-1]) as path:
        assert path.read_bytes() == b"12 006.mp4"  # as tar extracts it


def test_a_tar_or_table_that_cannot_be_read_costs_itself_only(tmp_path):
    good = write_tar(tmp_path / "good.tar", [("000.mp4", bytes(5000))])
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:4000])
    (tmp_path / "empty.tar").write_bytes(b"")
    write_tar(tmp_path / "texts.tar", [("000.txt", b"of no video")])
    (tmp_path / "damaged.parquet").write_bytes(b"no table")
    sources, _ = list_sources(str(tmp_path))
    found = problems(sources)
    assert set(found) == {"cut.tar", "empty.tar", "texts.tar", "damaged.parquet"} and len(sources) == 5
    assert "cut off" in found["cut.tar"] and "empty file" in found["empty.tar"]
    with pytest.raises(UserError, match=r"nothing of .* can be read; of cut.tar: .* copy it again"):
        list_sources(str(tmp_path / "cut.tar"))


def test_texts_that_are_wrong_cost_their_own_video_and_null_is_no_caption(tmp_path):
    members = [("good.mp4", b""), ("good.txt", b"kept"), ("good.json", b'{"caption": null}'),
               ("null.mp4", b""), ("null.json", b'{"caption": null}'), ("list.mp4", b""),
               ("list.json", b'{"text": null, "caption": [1]}'), ("torn.mp4", b""), ("torn.json", b"{")]  # fmt: skip
    sources, _ = list_sources(str(write_tar(tmp_path / "x.tar", members)))
    assert texts(sources) == {
        "x.tar/good.mp4": ["kept"], "x.tar/list.mp4": [], "x.tar/null.mp4": [], "x.tar/torn.mp4": [],
    }  # fmt: skip
    found = problems(sources)
    assert found["x.tar/list.mp4"] == "x.tar/list.json has no text in 'caption': it has ['caption']"
    assert "x.tar/torn.json is not JSON" in found["x.tar/torn.mp4"] and len(found) == 2
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "x.mp4", "caption": None}))
    assert texts(list_sources(str(tmp_path / "list.jsonl"))[0]) == {"x.mp4": []}


def test_a_folder_keeps_its_loose_videos_and_tars_beside_a_table(tmp_path):
    from pyarrow import Table, parquet

    rows = [{"video": {"bytes": b"b", "path": "b"}, "caption": None}, {"video": {"bytes": b"c", "path": "c"},
            "caption": "in a table"}]  # fmt: skip
    parquet.write_table(Table.from_pylist(rows), tmp_path / "table.parquet")
    parquet.write_table(Table.from_pylist([{"label": 1}]), tmp_path / "labels.parquet")
    (tmp_path / "a.mp4").write_bytes(b"a")
    write_tar(tmp_path / "x.tar", [("000.mp4", b"")])
    (tmp_path / "captions.csv").write_text("path,caption\na.mp4,loose\ntable.parquet/000000,of a row\ngone.mp4,lost\n")
    sources, unmatched = list_sources(str(tmp_path))
    assert texts(sources) == {
        "a.mp4": ["loose"], "table.parquet/000000": ["of a row"], "table.parquet/000001": ["in a table"],
        "x.tar/000.mp4": [],
    }  # fmt: skip
    assert unmatched == 1


def test_given_captions_count_for_tars_and_remote_folders_and_are_refused_for_lists(tmp_path, remote):
    tar = write_tar(tmp_path / "x.tar", [("000.mp4", b""), ("000.txt", b"its own")])
    given = tmp_path / "given.csv"
    given.write_text("path,caption\nx.tar/000.mp4,given\n")
    assert texts(list_sources(str(tar), given)[0]) == {"x.tar/000.mp4": ["given", "its own"]}
    remote.upload(tar, "x.tar")
    remote.write("deep/a.mp4", b"")
    remote.write("captions.csv", b"path,caption\ndeep/a.mp4,not asked for\n")
    given.write_text("path,caption\nx.tar/000.mp4,given\n./deep/a.mp4,also\nb.mp4,lost\n")
    sources, unmatched = list_sources(remote.url, given)
    assert texts(sources) == {"deep/a.mp4": ["also"], "x.tar/000.mp4": ["given", "its own"]} and unmatched == 1
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    with pytest.raises(UserError, match=r"--captions .*given.csv is for folders and tars"):
        list_sources(str(tmp_path / "list.csv"), given)


def test_a_remote_folder_has_captions_in_its_subfolders(remote):
    for name in ("a.mp4", "train/a.mp4", ".staging/a.mp4"):
        remote.write(name, b"")
    remote.write("metadata.csv", b"file_name,text\na.mp4,of the root\n")
    remote.write("train/metadata.csv", b"file_name,text\na.mp4,of train\n")
    sources, unmatched = list_sources(remote.url)
    assert texts(sources) == {"a.mp4": ["of the root"], "train/a.mp4": ["of train"]} and unmatched == 0
    remote.write("train/metadata.csv", b"file_name,text\na.mp4,a red ball, moving\n")
    with pytest.raises(UserError, match=f"{remote.url}/train/metadata.csv line 2 has 3 columns"):
        list_sources(remote.url)


def test_a_source_that_is_gone_is_rejected_and_nothing_of_it_staged(tmp_path, remote):
    remote.write("a.mp4", b"video")
    write_tar(tmp_path / "in" / "x.tar", [("000.mp4", b"")])
    sources = [list_sources(inputs)[0][0] for inputs in (remote.url, str(tmp_path / "in"))]
    remote.clear()
    (tmp_path / "in" / "x.tar").unlink()
    for source in sources:
        with pytest.raises(Unfetched, match="FileNotFoundError"), fetched(source):
            pass
        why = examine_source(CurationConfig(), str(tmp_path / "staging"), source)
        assert why and why.stage == "probe" and "FileNotFoundError" in why.detail
    assert not (tmp_path / "staging").exists()


def test_a_local_file_that_is_gone_since_it_was_examined_costs_its_clips(tmp_path):
    source = Source("a.mp4", str(tmp_path), "a.mp4", "stamp")
    place = dict(start=0, num_frames=1, fps=1.0, height=8, width=8, crop=(0, 0, 8, 8))
    clip = Candidate("a.mp4", **place, media_type="video/mp4", colour={}, whole=True)
    ((start, why),) = render((0,), str(tmp_path / "staging"), (source, (clip,)))
    assert start == 0 and "FileNotFoundError" in why


def test_one_video_is_a_source_and_what_is_not_there_is_named(tmp_path, remote):
    (tmp_path / "a.mp4").write_bytes(b"a")
    remote.write("b.mp4", b"b")
    for inputs in (str(tmp_path / "a.mp4"), f"{remote.url}/b.mp4"):
        (source,), _ = list_sources(inputs)
        with fetched(source) as path:
            assert path.read_bytes() == source.source_id[:1].encode()
    with pytest.raises(UserError, match=r"--inputs .*nosuch is not there: give a folder"):
        list_sources(str(tmp_path / "nosuch"))
