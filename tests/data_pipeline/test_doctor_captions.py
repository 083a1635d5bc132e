"""Of a captioner's data the doctor says whose captions each stage draws, how many are cut, and what no step visits."""

import dataclasses

import pytest

from data_pipeline.caption_stream import CaptionStage, CaptionStreamConfig
from data_pipeline.doctor import report_sections
from data_pipeline.doctor_captions import examine_captions
from data_pipeline.page import render_page

LONG = ("a large red ball that moves over the table and falls down slowly", "long")
CAPTIONS = [[("a ball", "short"), LONG], [("a ball", "short"), LONG], [LONG], []]
STAGES = (CaptionStage(0, {"short": 1.0}), CaptionStage(3, {"short": 1.0, "long": 3.0}))
CFG = CaptionStreamConfig(canvas=(6, 24, 24), batch_size=2, max_tokens=12, stages=STAGES)


@pytest.fixture(scope="module")
def clips(clips_in, tmp_path_factory):
    return clips_in(tmp_path_factory.mktemp("doctored") / "data", [(3, 24, 24)] * 4, captions=CAPTIONS)


def test_the_doctor_says_what_each_stage_draws_and_cuts(clips):
    report = examine_captions(clips, CFG, 10)
    assert report["problems"] == []
    assert report["captions"]["by_source"] == {"long": 3, "short": 2} and report["captions"]["truncated"] == 3
    assert [line["record"] for line in report["untrained"]] == [3]
    early, late = report["run"]["stages"].values()
    assert (early["steps"], late["steps"], report["run"]["clips"]) == (3, 7, 3)
    assert early["captions_drawn_by_source"] == pytest.approx({"short": 2 / 3, "long": 1 / 3})
    assert early["truncated"] == pytest.approx(1 / 3) and late["truncated"] > 0.5
    assert (early["without_weighted_caption"], late["without_weighted_caption"]) == (1, 0)
    assert "1 clips have only captions that caption_weights do not name: these are used" in report["warnings"]
    page = render_page("title", "subtitle", report_sections(report))
    assert "without weighted caption" in page and "it has no caption" in page


def test_a_captioner_that_would_train_on_nothing_is_a_problem(clips):
    assert examine_captions(clips, CFG, 3)["problems"] == [
        "stage 1 (from step 3) would train on nothing: the run ends before it"
    ]
    unknown = dataclasses.replace(CFG, stages=(STAGES[0], CaptionStage(3, {"shot": 1.0})))
    (problem,) = examine_captions(clips, unknown, 10)["problems"]
    assert problem.startswith("the run would train on nothing: caption_weights name 'shot'")
