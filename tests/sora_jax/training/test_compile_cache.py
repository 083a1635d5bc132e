"""A second process finds what the first one compiled, where the user's own cache folder is."""

import json
import os
import subprocess
import sys

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.training.compile_cache import default_folder, use_compile_cache

PROGRAM = """
import json, jax, jax.numpy as jnp
from sora_jax.training.compile_cache import use_compile_cache
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rsplit("/", 1)[-1]))
use_compile_cache()
print(json.dumps([float(jax.jit(lambda x: jnp.sort(x @ x)[0, 0])(jnp.ones((4, 4)))), events]))
"""


def start(cache_home, **environment: str) -> tuple[float, list[str]]:
    """The result of PROGRAM in a process of its own, and what JAX's cache did."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    variables |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache_home), **environment}
    command = [sys.executable, "-c", PROGRAM]
    return tuple(json.loads(subprocess.run(command, env=variables, capture_output=True, check=True).stdout))


def test_a_second_process_compiles_nothing(tmp_path):
    everything = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first, events = start(tmp_path, **everything)
    folder = tmp_path / "sora_jax" / "jax"
    kept = {path.name for path in folder.iterdir()}
    assert events.count("cache_misses") == len(kept) > 0 and "cache_hits" not in events
    assert folder.stat().st_mode & 0o077 == 0  # whoever writes there runs code here
    second, events = start(tmp_path, **everything)
    assert events.count("cache_hits") == len(kept) and "cache_misses" not in events
    assert first == second == 4.0 and {path.name for path in folder.iterdir()} == kept


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "sora_jax" / "jax"


def test_a_folder_that_cannot_be_written_is_an_error_if_it_was_asked_for(monkeypatch, tmp_path, capsys, caplog):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="--compile_cache, or 'off'"):
        use_compile_cache(folder)
    command = ["train", "--config", "configs/dit_quickstart.py", "--workdir", str(tmp_path / "run")]
    assert main([*command, "--compile_cache", folder]) == 2
    assert "compiled programs cannot be kept" in capsys.readouterr().err
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compile_cache()
    assert "compiled programs cannot be kept" in caplog.text


WITHOUT = """
import pathlib, sys, jax, jax.numpy as jnp
from sora_jax.training.compile_cache import without_compile_cache
count = lambda: len(list(pathlib.Path(sys.argv[1]).iterdir()))
x = jnp.ones((4, 4))
jax.jit(lambda x: x @ x)(x)
before = count()
with without_compile_cache():
    jax.jit(lambda x: jnp.sort(x @ x)[0, 0])(x)
    within = count()
jax.jit(lambda x: jnp.cumsum(x @ x)[0])(x)
print(before, within, count())
"""


def test_nothing_is_kept_within_although_there_was_a_cache_before(tmp_path):
    """JAX asks for the option at a process's first program only."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    variables |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    said = subprocess.run(command, env=variables, capture_output=True, check=True, text=True).stdout
    before, within, after = map(int, said.split())
    assert 0 < before == within < after
