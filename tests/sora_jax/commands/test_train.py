import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config

CONFIG = """
from ml_collections import ConfigDict

def get_config(size="small"):
    return ConfigDict({
        "train": {"task": "diffusion", "num_steps": 10, "mesh": {"data": 1}},
        "optim": {"learning_rate": 1e-3, "optimizer": "adamw"},
        "model": {"size": size},
        "shapes": (1, 2),
    })
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(CONFIG)
    return str(path)


def test_overrides_set_fields_of_their_own_type(config_file):
    overrides = ["--config.optim.learning_rate=3e-4", "--config.train.mesh.data=4", "--config.shapes=(3, 4)"]
    config = load_config(config_file, overrides)
    assert config.optim.learning_rate == 3e-4
    assert config.train.mesh.data == 4
    assert config.shapes == (3, 4)
    assert load_config(f"{config_file}:big").model.size == "big"
    assert load_config(config_file).optim.learning_rate == 1e-3, "an override leaves nothing behind"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning_rat=3e-4", "no field 'optim.learning_rat'; did you mean config.optim.learning_rate"),
        ("--config.num_step=3", "did you mean config.train.num_steps"),
        ("--config.optim.learning_rate=fast", "could not convert string to float: 'fast'"),
        ("--config.train.num_steps=1.5", "invalid literal for int"),
    ],
)
def test_a_wrong_override_says_what_would_fit(config_file, override, message):
    with pytest.raises(UserError, match=message):
        load_config(config_file, [override])


def test_a_missing_or_broken_config_is_an_error_for_users(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        load_config(str(tmp_path / "none.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:")
    with pytest.raises(UserError, match="SyntaxError"):
        load_config(str(broken))
    broken.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(UserError, match="NameError: name 'undefined'"):
        load_config(str(broken))
