"""`sora-jax evaluate --metric simulation` without samples: what real clips and forgetful ones score."""

import json

from sora_jax.commands import main as cli


def test_without_samples_real_clips_pass_where_forgetful_ones_fail(tmp_path, capsys):
    words = f"data synth --world simulation --clips 14 --seed 3 --out {tmp_path}/videos"
    assert cli.main(words.split()) == 0
    assert cli.main(f"data build --videos {tmp_path}/videos --out {tmp_path}/clips --workers 1".split()) == 0
    capsys.readouterr()
    words = f"evaluate --metric simulation --real {tmp_path}/clips --split train --out {tmp_path}/found.json"
    assert cli.main(words.split()) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    assert set(scores) == {"permanence", "orbit", "bounce", "collision", "count", "paint", "return"}
    assert sum(row["real"]["rate"] for row in scores.values()) > 6.3
    assert sum(row["chance"] or 0 for row in scores.values()) < 1.5
    assert "generated" not in scores["paint"]
