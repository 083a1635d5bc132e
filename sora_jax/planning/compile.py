"""The real training step, compiled for a mesh of devices that need not exist."""

import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from sora_jax.parallel import batch_shardings, check_rows, check_tokens, state_shardings
from sora_jax.planning.subjects import Subject
from sora_jax.training.step import abstract_state, make_train_step

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
REFUSALS = (
    r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm",
    # before anything is placed, and without the arguments: the temporaries alone are too large
    r"temporaries \(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)i?B?\)",
)
"""What libtpu says of a program that is too large, with bytes needed and there."""


@dataclass(frozen=True)
class Program:
    """A compiled step. Bytes are of one device, as the compiler reports them: `arguments` and `outputs` in the device's
    own layout, `aliased` the outputs that reuse an argument's memory, `temporaries` all that the step needs beside."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    offloaded: int
    """bytes of the host's memory that hold what the remat policy `offload` moved there"""
    code: int
    text: str
    seconds: float
    compiled: Any
    state: Any = None
    """of a training step: the shapes and shardings of the state that it takes"""
    unread: tuple[str, ...] = ()
    """arrays of the batch that the step does not read, and that are no argument of the program"""

    @property
    def total(self) -> int:
        """The most memory that the step needs at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class DoesNotFit:
    """The compiler's own refusal: it found `needed` bytes, or more, for a device that has `available`. Where the
    temporaries alone are too many it names only those."""

    needed: int
    available: int
    message: str


def abstract_arguments(subject: Subject, mesh: Mesh) -> tuple[Any, Any, Any]:
    """(state, frozen networks, batch) as shapes with their shardings: what the step is called with."""
    shapes = abstract_state(subject.task, subject.train)
    state = with_shardings(shapes, state_shardings(shapes, mesh))
    return state, with_shardings(subject.task.frozen, state_shardings(subject.task.frozen, mesh)), with_shardings(
        subject.batch, batch_shardings(subject.batch, mesh)
    )  # fmt: skip


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes that say where they lie."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def compile_step(subject: Subject, mesh: Mesh) -> Program | DoesNotFit:
    """Compiles the step. Raises UserError for rows that the mesh cannot split."""
    check_rows(mesh, subject.train.batch_rows, subject.train.microbatches)
    if "segment_ids" in subject.batch:  # packed rows
        check_tokens(mesh.shape, subject.batch["segment_ids"].shape[1])
    with jax.set_mesh(mesh):
        arguments = abstract_arguments(subject, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, arguments[0])
        program = compile_lowered(make_train_step(subject.task, subject.train, shardings).lower(*arguments))
    if isinstance(program, DoesNotFit):
        return program
    return dataclasses.replace(program, state=arguments[0], unread=unread(subject.batch, program.text))


def compile_lowered(lowered: Any) -> Program | DoesNotFit:
    """What `jax.jit(…).lower(…)` gave, compiled for the devices of its arguments' shardings."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return refusal(error)
    memory = compiled.memory_analysis()
    return Program(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        offloaded=memory.host_temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        text=compiled.as_text(),
        seconds=time.perf_counter() - begun,
        compiled=compiled,
    )


def unread(batch: Mapping[str, Any], text: str) -> tuple[str, ...]:
    """Arrays of the argument `batch` that are none of the program's."""
    return tuple(name for name in batch if not _is_argument(f"batch['{name}']", text))


def _is_argument(path: str, text: str) -> bool:
    """Whether the program `text` has this argument: jax names each after its place in the call."""
    return any(f'op_name="{name}"' in text for name in (path, path.replace("'", "\\'")))


def refusal(error: RuntimeError) -> DoesNotFit:
    """What a compiler says of a program that is too large; any other error is raised again."""
    message = str(error)
    found = next(filter(None, (re.search(pattern, message) for pattern in REFUSALS)), None)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        raise error
    needed, available = (int(float(found.group(i)) * UNITS[found.group(i + 1)]) for i in (1, 3))
    return DoesNotFit(needed, available, message.splitlines()[0])
