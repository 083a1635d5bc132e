"""A law that is known comes back from its own points, and its best size is where the loss is least."""

import json

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.commands import main as cli
from sora_jax.sweeps.scaling import FLOPS, Law, Point, fit

TRUE = Law(e=0.2, a=40.0, alpha=0.4, b=90.0, beta=0.35, error=0.0)


def points() -> list[Point]:
    grid = [(n, d) for n in (1e5, 4e5, 1.6e6) for d in (1e6, 4e6, 1.6e7)]
    return [Point(n, d, float(TRUE.loss(n, d))) for n, d in grid]


def test_a_known_law_comes_back():
    law = fit(points())
    assert law.error < 1e-3 and (law.alpha, law.beta) == pytest.approx((0.4, 0.35), abs=0.02)
    best = TRUE.best(1e14)
    assert FLOPS * best.parameters * best.tokens == pytest.approx(1e14)
    sizes = best.parameters * np.array([0.8, 1.0, 1.25])
    losses = TRUE.loss(sizes, 1e14 / FLOPS / sizes)
    assert losses.argmin() == 1 and best.loss == pytest.approx(losses[1])
    with pytest.raises(UserError, match="at least 6 finished runs of 2 sizes and 2 amounts of data; there are 3 of 3"):
        fit([Point(n, 1e6, 1.0) for n in (1e5, 2e5, 3e5)])


def test_the_verb_fits_and_draws(tmp_path, capsys):
    lines = ["parameters,tokens,loss", *(f"{p.parameters},{p.tokens},{p.loss}" for p in points())]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    words = f"evaluate scaling --points {tmp_path}/points.csv --budget 1e14 --bootstrap 10 --out {tmp_path}/fit.json"
    assert cli.main(words.split()) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["best"][0]["parameters"] == pytest.approx(TRUE.best(1e14).parameters, rel=0.2)
    assert found["intervals"]["alpha"] is None or found["intervals"]["alpha"][0] <= found["intervals"]["alpha"][1]
    assert (tmp_path / "fit.png").stat().st_size > 10_000
