"""The command-line program: errors, exit codes, overrides, and that `data` works without jax."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands import main as cli

BLOCK_JAX = "import sys; sys.modules['jax'] = None; "


def _python(code: str, *, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Writes a real verb module `greet` and returns a function that runs it through `main`."""

    def install(body: str, options: str = "parser.add_argument('--name', required=True)"):
        source = f"def add_arguments(parser):\n    {options}\n\n\ndef run(args):\n    {body}\n"
        (tmp_path / "greet.py").write_text(source)
        monkeypatch.setattr(sys.modules["sora_jax.commands"], "__path__", [str(tmp_path)])
        monkeypatch.setitem(cli.VERBS, "greet", "says hello")
        monkeypatch.delitem(sys.modules, "sora_jax.commands.greet", raising=False)
        return lambda *words: cli.main(["greet", *words])

    yield install
    sys.modules.pop("sora_jax.commands.greet", None)


def test_the_last_line_of_stdout_is_the_result(verb, capsys):
    run = verb("print('on the way'); from pathlib import Path; return {'name': args.name, 'out': Path('a/b')}")
    assert run("--name", "x") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"name": "x", "out": "a/b"}


def test_a_user_error_is_one_line_and_exit_code_2(verb, capsys):
    run = verb("from data_pipeline.errors import UserError\n    raise UserError('17 frames,\\n not 1+4n: use 13')")
    assert run("--name", "x") == 2
    captured = capsys.readouterr()
    assert captured.err.strip() == "sora-jax: error: 17 frames, not 1+4n: use 13" and captured.out == ""


def test_a_full_disk_is_one_line(verb, capsys):
    run = verb("raise OSError(28, 'No space left on device', 'x.bin')")
    assert run("--name", "x") == cli.EXIT_SYSTEM_ERROR
    assert "No space left on device: 'x.bin'" in capsys.readouterr().err


def test_what_may_go_better_the_next_time_has_the_systems_code(verb, capsys):
    run = verb(
        "import errno\n"
        "    from data_pipeline.errors import from_os_error\n"
        "    raise from_os_error(OSError(getattr(errno, args.name), 'words', 'x'), 'writing x')"
    )
    for name, code in (("ENOSPC", 3), ("ESTALE", 3), ("EACCES", 2), ("ENOTDIR", 2)):
        assert run("--name", name) == code, name
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_an_address_of_a_bucket_is_no_path(verb, capsys):
    run = verb("return {}", "parser.add_argument('--workdir', type=__import__('pathlib').Path)")
    assert run("--workdir", "gs://bucket/run") == 2
    assert "--workdir is gs:/bucket/run, but 'gs://…' is no path" in capsys.readouterr().err
    assert run("--workdir", "runs/a:b/c") == 0


def test_a_verb_may_have_an_exit_code_of_its_own(verb):
    assert verb("return {'exit_code': 75}")("--name", "x") == 75


def test_programming_errors_are_not_hidden(verb):
    with pytest.raises(ZeroDivisionError):
        verb("return {'x': 1 / 0}")("--name", "x")


def test_overrides_reach_verbs_with_a_config(verb, capsys):
    run = verb("return {'overrides': args.overrides}", "parser.add_argument('--config')")
    assert run("--config", "c.py", "--config.optim.learning_rate=3e-4", "--config.seed=1") == 0
    overrides = json.loads(capsys.readouterr().out)["overrides"]
    assert overrides == ["--config.optim.learning_rate=3e-4", "--config.seed=1"]


def test_overrides_reach_verbs_within_verbs(verb, capsys):
    options = "parser.add_subparsers(dest='part').add_parser('loop').add_argument('--config')"
    assert verb("return {'overrides': args.overrides}", options)("loop", "--config", "c.py", "--config.seed=1") == 0
    assert json.loads(capsys.readouterr().out) == {"overrides": ["--config.seed=1"]}


def test_an_override_without_a_value_is_an_error(verb, capsys):
    run = verb("return {}", "parser.add_argument('--config')")
    assert run("--config", "c.py", "--config.seed", "3") == 2
    assert "--config.seed=VALUE" in capsys.readouterr().err


def test_unknown_options_and_verbs_are_errors(verb):
    run = verb("return {}")
    for words in (["--name", "x", "--nmae", "y"], ["--name", "x", "--config.seed=3"]):
        with pytest.raises(SystemExit, match="2"):
            run(*words)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tarin"])


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("words", ["['--help']", "['data', '--help']"])
def test_help_and_data_need_no_jax(repository, words):
    code = f"{BLOCK_JAX} from sora_jax.commands.main import main; main({words})"
    done = _python(code, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "usage: sora-jax" in done.stdout


def test_importing_the_program_imports_no_heavy_package(repository):
    code = (
        "import sora_jax.commands.main, sys; heavy = {'jax', 'flax', 'grain', 'numpy', 'av', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert _python(code, cwd=repository).stdout.strip() == "[]"


def test_a_loaders_worker_does_not_import_jax(repository, tmp_path):
    """A spawned worker re-imports the main script as `__mp_main__`; importing the program there blocks jax."""
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing\nfrom sora_jax.commands import main\n\n"
        "def has_jax(_):\n    import sys\n    return sys.modules.get('jax', 'free') is not None\n\n"
        "if __name__ == '__main__':\n"
        "    print(multiprocessing.get_context('spawn').Pool(1).map(has_jax, [0]), has_jax(0))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[False] True", done.stderr
