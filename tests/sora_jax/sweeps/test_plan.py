"""What a sweep file may say, and what is refused before anything runs."""

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config
from sora_jax.sweeps.plan import member_name, read_sweep

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "train": {"task": "diffusion", "num_steps": 10, "mesh": {"data": 1}},
        "optim": {"learning_rate": 1e-3, "optimizer": "adamw"},
        "model": {"width": 64, "gated": False, "name": "small", "text": {"width": 32}, "patch": (1, 2, 2)},
    })
"""


@pytest.fixture
def read(tmp_path):
    """Reads a sweep over the config above, with members and more lines as given."""

    def run(members, given=(), lines=""):
        file = tmp_path / "sweep.py"
        file.write_text(f"{CONFIG}\n{lines}\n\ndef get_sweep():\n    yield from {members!r}\n")
        return read_sweep(str(file), given, load_config)

    return run


def test_members_carry_their_values_and_all_overrides(read):
    sweep = read([{"optim.learning_rate": 1}, {"model.patch": (1, 1, 1)}], ["--config.train.num_steps=7"])
    one, two = sweep.members
    assert one.values == {"optim.learning_rate": 1.0} and two.values == {"model.patch": (1, 1, 1)}
    assert one.overrides == ("--config.train.num_steps=7", "--config.optim.learning_rate=1")
    assert [m.num_steps for m in sweep.members] == [7, 7] and [m.index for m in sweep.members] == [0, 1]
    assert sweep.configs[two.name]["model"]["patch"] == [1, 1, 1]
    assert load_config(sweep.base, two.overrides).model.patch == (1, 1, 1)


def test_every_kind_of_value_reaches_the_config_as_it_was_meant(read):
    values = {"model.gated": True, "model.name": "a b", "train.mesh.data": 4, "optim.learning_rate": 1e-5}
    sweep = read([values])
    config = load_config(sweep.base, sweep.members[0].overrides)
    assert (config.model.gated, config.model.name, config.train.mesh.data) == (True, "a b", 4)
    assert config.optim.learning_rate == 1e-5


def test_a_name_follows_from_the_members_own_values(read):
    first = read([{"optim.learning_rate": 1e-3, "model.width": 64}]).members[0]
    turned = {"model.width": 64, "optim.learning_rate": 0.001}
    later = read([{"optim.learning_rate": 3e-3}, turned], ["--config.train.num_steps=7"]).members[1]
    assert first.name == later.name and first.name.startswith("width=64_learning_rate=0.001-")
    assert read([{"optim.learning_rate": 1}]).members[0].name == read([{"optim.learning_rate": 1.0}]).members[0].name
    assert member_name({"model.width": 1, "model.text.width": 2}).startswith("model.text.width=2_model.width=1-")
    assert (
        "/" not in member_name({"data.path": "some/where else"}) and len(member_name({"model.name": "x" * 300})) < 100
    )
    assert member_name({}).startswith("base-")


def test_common_fields_hold_for_all_and_the_command_line_wins(read):
    lines = 'COMMON = {"model.width": 8, "train.num_steps": 3}'
    sweep = read([{"optim.learning_rate": 1e-4}], ["--config.model.width=16"], lines)
    config = sweep.configs[sweep.members[0].name]
    assert config["model"]["width"] == 16 and sweep.members[0].num_steps == 3
    assert sweep.members[0].values == {"optim.learning_rate": 1e-4}


@pytest.mark.parametrize(
    "members, says",
    [
        ([{"optim.learning_rat": 1.0}], "member 0 .*did you mean config.optim.learning_rate"),
        ([{}, {"config.model.width": 1}], "member 1 .*no field 'config.model.width'"),
        ([{"model.width": 1.5}], "member 0"),
        ([{"model.width": "8"}], "config.model.width holds a value of type int; '8'"),
        ([{"model.width": True}], "member 0"),
        ([{"model.gated": 1}], "config.model.gated holds a value of type bool; 1"),
        ([{"model.name": 3}], "config.model.name holds a value of type str; 3"),
        ([{"train.num_steps": 0}], "num_steps is 0, but must be at least 1"),
        ([{"train.log_every": -1}], "log_every is -1"),
        ([{"model.width": 8}, {"model.width": 9}, {"model.width": 8}], "members 0 and 2 .*are the same run"),
        ([{}, {"model.width": 64}], "members 0 and 1 .*are the same run"),
        ([], "yields no members"),
        ([("model.width", 8)], "no dict of dotted names"),
    ],
)
def test_what_cannot_run_is_refused(read, members, says):
    with pytest.raises(UserError, match=says):
        read(members)


@pytest.mark.parametrize(
    "given, lines, says",
    [
        (["--config.model.width=3"], "", "config.model.width is swept, and set for all members too"),
        ([], "COMMON = {'model.width': 3}", "config.model.width is swept, and set for all members too"),
        ([], "COMMON = {'model.depth': 3}", "COMMON of .*no field 'model.depth'"),
        ([], "COMMON = {'train.num_steps': '3'}", "COMMON of .*holds a value of type int"),
        (["--config.model.gated=maybe"], "", "an override does not fit"),
        ([], "BASE = 'configs/nowhere.py'", "neither here nor in a folder above"),
        ([], "1 / 0", "fails: ZeroDivisionError"),
    ],
)
def test_what_holds_for_all_is_checked_too(read, given, lines, says):
    with pytest.raises(UserError, match=says):
        read([{"model.width": 8}], given, lines)


@pytest.mark.parametrize(
    "text, says",
    [
        ("BASE = 'x'", "has no get_sweep"),
        ("def get_sweep():\n    yield {}", "neither BASE .* nor get_config"),
        (
            "def get_sweep():\n    yield {'x': 1 / 0}\n\ndef get_config():\n    return {}",
            "get_sweep.. of .*ZeroDivision",
        ),
        ("def get_sweep(:", "SyntaxError"),
    ],
)
def test_a_broken_file_says_what_it_lacks(tmp_path, text, says):
    file = tmp_path / "sweep.py"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_sweep(str(file), (), load_config)
    with pytest.raises(UserError, match="no sweep file"):
        read_sweep(str(tmp_path / "none.py"), (), load_config)


def test_the_sweeps_of_this_repository_are_sound(repository):
    counts = {p.stem: len(read_sweep(str(p), (), load_config).members) for p in repository.glob("configs/sweeps/*.py")}
    assert counts == {"quickstart_learning_rate": 6, "quickstart_scaling": 9, "dit_scaling": 9, "low_precision": 4}
