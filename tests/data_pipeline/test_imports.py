"""A curation or loader machine needs no accelerator stack: everything in `data_pipeline` works without jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = sorted((Path(__file__).parents[2] / "data_pipeline").rglob("*.py"))

WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
sys.modules["sora_jax"] = None
sys.path.insert(0, {root!r})
import importlib, pkgutil
import data_pipeline
for module in pkgutil.walk_packages(data_pipeline.__path__, "data_pipeline."):
    importlib.import_module(module.name)
from data_pipeline.stream import LatentSource, StreamConfig, make_stream
cfg = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=2)
with make_stream(LatentSource({directory!r}, cfg), 0, 3) as stream:
    print(sum(int(batch["sample_tokens"].sum()) > 0 for batch in stream))
assert not [name for name in sys.modules if name.startswith(("jax.", "jaxlib", "sora_jax."))]
"""


def test_data_pipeline_works_where_jax_cannot_be_imported(repository: Path, latent_set: Path) -> None:
    program = WITHOUT_JAX.format(root=str(repository), directory=str(latent_set))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_no_module_names_jax_or_sora_jax(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "sora_jax")]
