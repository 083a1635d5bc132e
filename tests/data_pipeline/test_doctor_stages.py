"""Of stages and mixtures the doctor says what each would see, and which of them would train on nothing."""

import dataclasses

from data_pipeline.doctor_stages import examine_stages, stages_sections
from data_pipeline.page import render_page
from data_pipeline.stages import Member, Stage
from data_pipeline.stream import StreamConfig
from tests.data_pipeline.test_stages import share_tokenizer

CFG = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=4, window_steps=2)


def test_the_doctor_says_what_each_stage_sees_of_each_data_set(latents_in, tmp_path):
    first, second = latents_in(tmp_path / "first", 40, 4), latents_in(tmp_path / "second", 24, seed=1)
    share_tokenizer(first, second)
    both = (Member(str(first), 3.0), Member(str(second)))
    stages = [Stage(0, both, CFG), Stage(30, both, dataclasses.replace(CFG, row_tokens=192), 512)]
    report = examine_stages(stages, 50)
    assert report["problems"] == []
    early, late = report["stages"]
    assert (early["steps"], late["steps"], late["row_tokens"], late["reference_tokens"]) == (30, 20, 192, 512)
    seen = early["data_sets"][str(first)]
    assert (seen["share"], seen["rows"]) == (0.75, 90) and early["data_sets"][str(second)]["rows"] == 30
    assert 0 < early["tokens_per_step"] <= 4 * 96
    assert abs(early["padding"] - (1 - early["tokens_per_step"] / (4 * 96))) < 0.01
    assert seen["captions_drawn_by_source"].keys() <= {"human", "no caption"}
    samples = seen["epochs"] * 40  # of the first data set in the first stage
    assert abs(samples - 90 * seen["segments_per_row"]) < 0.1 * samples
    page = render_page("title", "subtitle", stages_sections(report))
    assert "Stage 1: its data sets" in page and "human" in page


def test_a_stage_or_a_data_set_that_trains_on_nothing_is_a_problem(latents_in, tmp_path):
    first, second = latents_in(tmp_path / "first", 12, 4), latents_in(tmp_path / "second", 12, 4, seed=1)
    share_tokenizer(first, second)
    rare = (Member(str(first), 99.0), Member(str(second)))
    small = dataclasses.replace(CFG, row_tokens=3, caption_weights={"robot": 1.0})
    stages = [Stage(0, rare, CFG), Stage(5, rare, small), Stage(20, rare, CFG)]
    problems = examine_stages(stages, 20)["problems"]
    told = [
        (
            "stage 0 (from step 0), ",
            "second: the run would train on nothing: none of its 20 rows is from",
        ),
        ("stage 1 (from step 5), ", "first: the run would train on nothing: no clip fits into a row"),
        ("stage 1 (from step 5): ", "name 'robot', but no caption is of that source"),
        ("stage 2 (from step 20)", "would train on nothing: the run ends before it"),
    ]
    for start, rest in told:
        assert any(text.startswith(start) and rest in text for text in problems), (start, problems)


def test_what_one_data_set_trains_on_and_another_holds_out_is_found(latents_in, tmp_path):
    """Clips are of the same groups and contents by their number: 8 to 11 are held out in the first alone."""
    first, second = latents_in(tmp_path / "first", 8, 4), latents_in(tmp_path / "second", 12)
    third = latents_in(tmp_path / "third", 8, 4)
    for other in (second, third):
        share_tokenizer(first, other)
    for other, count in ((second, 2), (third, 0)):  # of clips, and of groups
        stages = [Stage(0, (Member(str(first)),), CFG), Stage(9, (Member(str(other)),), CFG)]
        found = [text for text in examine_stages(stages, 20)["problems"] if "are held out in" in text]
        assert len(found) == count and all(str(first) in text.split("are held out in")[1] for text in found)
