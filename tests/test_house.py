"""The rules of the house, checked: who may import whom, a true README, no machine's paths, sizes, no stubs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Imports go one way: a module may import its own layer and those before it.
LAYERS = (
    {"types", "config", "parallel", "flops"},
    {"models"},
    {"diffusion"},
    {"objectives"},
    {"training"},
    {"generation"},
    {"planning"},
    {"evaluation"},
    {"sweeps"},
    {"commands"},
)
CONFIG_IMPORTS = {"ml_collections", "itertools", "math"}  # what it takes to say what a run, or a sweep, is
ACCELERATOR_STACK = {"jax", "jaxlib", "flax", "optax", "orbax", "sora_jax", "torch", "tensorflow"}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
LONG_BY_NATURE = {"get_config"}
STUBS = ("TO" + "DO", "FIX" + "ME", "raise NotImplemented" + "Error")
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|work|farm|Users|mnt|workspace)/\w")


def _files(*suffixes: str) -> list[Path]:
    """Files of the working tree that git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(f) for f in sorted(set(listed)) if f.endswith(suffixes) and (REPOSITORY / f).is_file()]


def _python_files(*folders: str) -> list[Path]:
    return [path for path in _files(".py") if not folders or path.parts[0] in folders]


def _text(path: Path) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def _imports(path: Path) -> Iterator[str]:
    """Full dotted names of what a file imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(_text(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, node.module] if node.module else package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _layer(dotted: str) -> int | None:
    """The layer of `sora_jax.<room>…`; None for the package itself and for other packages."""
    parts = dotted.split(".")
    if parts[0] != "sora_jax" or len(parts) < 2:
        return None
    return next((i for i, rooms in enumerate(LAYERS) if parts[1] in rooms), None)


def test_every_module_of_sora_jax_has_a_layer():
    homeless = [
        str(path)
        for path in _python_files("sora_jax")
        if path.parts[1:] != ("__init__.py",) and _layer(".".join(path.with_suffix("").parts)) is None
    ]
    assert not homeless


def test_imports_inside_sora_jax_go_one_way():
    upward = [
        f"{path} imports {name}"
        for path in _python_files("sora_jax")
        if path != Path("sora_jax/__init__.py")  # the package shows, when asked, what its layers offer
        for name in _imports(path)
        if (_layer(name) or 0) > (_layer(".".join(path.with_suffix("").parts)) or 0)
    ]
    assert not upward, "\n".join(upward)


def test_the_data_pipeline_imports_no_accelerator_stack():
    wrong = [
        f"{path} imports {name}"
        for path in _python_files("data_pipeline")
        for name in _imports(path)
        if name.split(".")[0] in ACCELERATOR_STACK
    ]
    assert not wrong, "\n".join(wrong)


def test_the_data_pipeline_works_where_jax_is_not_importable():
    modules = [".".join(path.with_suffix("").parts) for path in _python_files("data_pipeline")]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = (
        "import sys, importlib\n"
        "sys.modules['jax'] = None\n"
        f"[importlib.import_module(name) for name in {modules}]\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'sora_jax']"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_configs_import_what_describes_a_run_only():
    wrong = [
        f"{path} imports {name}"
        for path in _python_files("configs")
        for name in _imports(path)
        if name.split(".")[0] not in CONFIG_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["sora_jax", "data_pipeline", "configs", "launch", "docs", "benchmarks"])
def test_the_readmes_tree_is_true(folder):
    """Each file is in the README's tree, and each name in the tree is a file."""
    listed = set(_readme_tree())
    actual = {str(p) for p in _files("") if p.parts[0] == folder and p.name != "__init__.py"}
    actual = {p for p in actual if not p.endswith((".png", ".mp4", ".gif", ".webp"))}
    in_folder = {name for name in listed if name.startswith(f"{folder}/")}
    assert sorted(in_folder - actual) == [], "in the README's tree, but not in the repository"
    assert sorted(actual - in_folder) == [], "in the repository, but not in the README's tree"


def _readme_tree() -> Iterator[str]:
    """Paths of the files in the README's tree, read by indentation: `folder/` lines open a folder."""
    block = re.search(r"```tree\n(.*?)```", _text(Path("README.md")), re.DOTALL)
    assert block, "README.md has no ```tree block"
    folders: list[tuple[int, str]] = []
    for line in block.group(1).splitlines():
        indent = len(line) - len(line.lstrip())
        name = line.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        if name.endswith("/"):
            folders.append((indent, name))
        else:
            yield "".join(folder for _, folder in folders) + name


def test_no_file_names_a_path_of_one_machine():
    texts = _files(".py", ".md", ".sh", ".toml", ".yaml", ".html", ".txt", "Makefile", ".ci/run")
    wrong = [
        f"{path}:{i}: {line.strip()[:80]}"
        for path in texts
        for i, line in enumerate(_text(path).splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_and_functions_keep_their_ceilings():
    wrong = []
    for path in _python_files():
        text = _text(path)
        if text.count("\n") > MAX_MODULE_LINES:
            wrong.append(f"{path}: {text.count(chr(10))} lines, ceiling {MAX_MODULE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG_BY_NATURE:
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {length} lines, ceiling {MAX_FUNCTION_LINES}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_to_do():
    wrong = [
        f"{path}:{i}: {line.strip()[:80]}"
        for path in _python_files()
        for i, line in enumerate(_text(path).splitlines(), 1)
        if any(stub in line for stub in STUBS)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_docstring():
    silent = [
        str(p)
        for p in _python_files("sora_jax", "data_pipeline", "configs")
        if _text(p).strip() and not ast.get_docstring(ast.parse(_text(p)))
    ]
    assert not silent
