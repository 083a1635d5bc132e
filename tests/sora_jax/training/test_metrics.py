import json
import math
import time

import jax.numpy as jnp
import numpy as np

from sora_jax.training.metrics import COUNTERS, Meter, MetricsLog, Work, count_work, mean_of_sums, read_metrics
from sora_jax.training.progress import describe_row, duration
from sora_jax.training.step import StepMetrics

NAMES = (*COUNTERS, "loss")


def step_metrics(loss: float, weight: float = 1.0, skipped: bool = False, in_a_row: int = 0) -> StepMetrics:
    counters = [[float(skipped), 1.0], [float(skipped), 1.0], [float(in_a_row), 1.0]]
    return StepMetrics(jnp.array([*counters, [loss * weight, weight]], jnp.float32), NAMES)


def test_a_window_is_a_weighted_mean_and_leaves_skipped_steps_out():
    meter = Meter(log_every=3, num_steps=10, peak=1e9)
    rows = []
    for step, metrics in enumerate(
        [
            step_metrics(1.0),
            step_metrics(math.nan, skipped=True, in_a_row=1),
            step_metrics(3.0, 3.0),
            step_metrics(9.0),
        ],
        1,
    ):
        meter.add(step, metrics, Work("tokens", 80, 100, 1e6))
        rows += meter.settle(keep=0)
    assert [step for step, _ in rows] == [3]
    np.testing.assert_allclose(rows[0][1]["loss"], 2.5)


def test_rows_wait_for_the_steps_in_flight_and_no_longer():
    meter = Meter(log_every=2, num_steps=5, peak=1e9)
    meter.start()
    rows = []
    for step in range(1, 6):
        meter.add(step, step_metrics(float(step)), Work("tokens", 80, 100, 1e6))
        rows += [(step, *row) for row in meter.settle(keep=2)]
    assert [(now, step) for now, step, _ in rows] == [(4, 2)]
    last = meter.pause()
    assert [step for step, _ in last] == [4, 5]
    assert [row["loss"] for _, row in last] == [3.5, 5.0]
    assert abs(last[0][1]["padding"] - 0.2) < 1e-9
    assert last[0][1]["tokens_per_second"] > 0 and last[0][1]["mfu"] > 0


def test_only_skipped_steps_make_a_row_without_a_loss():
    meter = Meter(log_every=1, num_steps=5, peak=1e9)
    meter.add(1, step_metrics(math.nan, skipped=True, in_a_row=1), Work("rows", 1, 1, 1.0))
    ((_, row),) = meter.settle(keep=0)
    assert math.isnan(row["loss"]) and meter.nonfinite_in_a_row == 1


def test_rows_after_the_restored_step_and_torn_lines_are_superseded(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in (5, 10, 15):
            log.write(step, "train", {"loss": float(step), "bad": math.nan})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "kind": "tr')  # killed while writing
    with MetricsLog(tmp_path, 10) as log:
        log.write(15, "train", {"loss": -1.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(5, 5.0), (10, 10.0), (15, -1.0)]
    assert read_metrics(tmp_path)[0]["bad"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_work_is_counted_in_tokens_frames_or_rows():
    ids = np.array([[1, 1, 2, 0], [1, 0, 0, 0]], np.int32)
    assert count_work({"segment_ids": ids}, 7.0) == Work("tokens", 4, 8, 7.0)
    assert count_work({"video": np.zeros((2, 5, 8, 8, 3), np.uint8)}, 7.0) == Work("frames", 10, 10, 7.0)
    assert count_work({"x": np.zeros((3, 2))}, 7.0) == Work("rows", 3, 3, 7.0)


def test_sums_of_batches_weigh_as_counted():
    batches = [{"loss": (jnp.float32(2), jnp.float32(1))}, {"loss": (jnp.float32(4), jnp.float32(3))}]
    assert mean_of_sums(batches) == {"loss": 1.5}
    assert math.isnan(mean_of_sums([{"loss": (jnp.float32(0), jnp.float32(0))}])["loss"])


def test_the_progress_line_reads_well():
    row = {"loss": 0.12345, "tokens_per_second": 45600.0, "padding": 0.008, "mfu": 0.412, "data_wait": 0.2}
    text = describe_row({**row, "skipped_total": 3.0}, 3725.0)
    assert text == (
        "loss 0.1235  45.6k tokens/s  padding 0.8%  MFU 41.2%  waiting for data 20%  3 steps skipped  1:02:05 left"
    )
    assert duration(65.4) == "1:05"


def test_steps_are_dated_when_they_end_not_when_they_are_read():
    meter = Meter(log_every=1, num_steps=9, peak=1e9)
    meter.start()
    for step in range(1, 4):  # the data is slow: each step has ended long before it is read
        time.sleep(0.1)
        meter.waited(0.1)
        meter.add(step, step_metrics(1.0), Work("rows", 1, 1, 1.0, unreadable=step))
    rows = [row for _, row in meter.pause()]
    time.sleep(0.2)  # a pause is no step's
    meter.start()
    with meter.blocked():
        time.sleep(0.05)  # another process is late
    meter.add(4, step_metrics(1.0), Work("rows", 1, 1, 1.0))
    rows += [row for _, row in meter.settle(keep=0)]
    meter.close()
    assert all(row["step_seconds"] > 0.01 for row in rows[:3]), "all three were read in an instant"
    assert sum(row["step_seconds"] for row in rows[:3]) >= 0.29
    assert [row["unreadable_clips"] for row in rows] == [1, 2, 3, 0]
    assert rows[3]["host_seconds"] <= rows[3]["step_seconds"] - 0.049
    assert 0 < meter.waited_s <= 0.301 and sum(row["data_wait"] for row in rows) > 0
