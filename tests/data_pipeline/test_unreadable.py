from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.unreadable import MIN_READS, Unreadable


def test_a_clip_is_reported_once_and_a_quarter_of_all_is_too_much(caplog):
    unreadable, error = Unreadable(Path("clips")), UserError("torn")
    for number in range(MIN_READS - 1):  # all of them fail: too few reads to judge by
        unreadable.count(number % 3, error)
    assert len(caplog.records) == 3
    for _ in range(3 * MIN_READS):
        unreadable.count(9, None)
    unreadable.count(0, error)  # 200 of 800, as many as may be
    with pytest.raises(UserError, match=r"clips: 25% of 801 clips are unreadable, more than 25%, .* record 7 \(torn\)"):
        unreadable.count(7, error)
