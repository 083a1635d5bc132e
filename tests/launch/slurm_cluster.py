"""A real Slurm cluster on this machine for tests: `launch/slurm_local.sh` behind a small class."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "launch" / "slurm_local.sh"

POLL_S = 0.25


class SlurmCluster:
    """Node daemons n1, n2, … of one core each, in `folder`; a context manager that ends every job and daemon.

    `environment` is what programs of Slurm, and whatever submits jobs, need to find it.
    """

    def __init__(self, folder: Path, num_nodes: int = 2) -> None:
        self.folder, self.num_nodes = folder, num_nodes
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "SlurmCluster":
        try:
            self._script("start")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._script("stop")

    def _script(self, verb: str) -> None:
        command = [str(SCRIPT), verb, str(self.folder)]
        environment = {**os.environ, "NODES": str(self.num_nodes)}
        # Files, not pipes: the daemons inherit them and would keep a pipe open for good.
        with open(self.folder.with_name(f"{self.folder.name}.{verb}.log"), "w+") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=120, check=False)
            log.seek(0)
            assert done.returncode == 0, log.read()

    def run(self, *command: object, cwd: Path = REPOSITORY, **environment: str) -> str:
        """The stdout of one of Slurm's programs. Raises AssertionError with what it said when it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *words: object, cwd: Path = REPOSITORY, **environment: str) -> int:
        """Submits flags, script and arguments with extra variables in the environment; returns the job's id."""
        return int(self.run("sbatch", "--parsable", *words, cwd=cwd, **environment))

    def job(self, job: int | str) -> dict[str, str]:
        """What `scontrol show job` says of a job: JobState, ExitCode, Restarts, Reason, … ("7_2" names an array's)."""
        fields = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()[0].split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: int | str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Waits until the job is in one of `states`, such as "RUNNING" or "COMPLETED", and returns what it then is."""
        deadline = time.monotonic() + timeout_s
        while (found := self.job(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {job} is not {states} after {timeout_s} s, but {found}"
            time.sleep(POLL_S)
        return found

    def requeue(self, job: int | str) -> None:
        """Preempts a running job as an administrator would, and lets it start again without Slurm's pause."""
        restarts = int(self.job(job)["Restarts"])
        self.run("scontrol", "requeue", job)
        self.start_now(job, restarts + 1)

    def start_now(self, job: int | str, restarts: int = 1, timeout_s: float = 120) -> None:
        """Waits until a job is back in the queue for its restart of that number, and skips the two minutes for which
        Slurm holds it there. Not all of them: within the second in which it ended, its node refuses its credential."""
        deadline = time.monotonic() + timeout_s
        while (found := self.job(job))["JobState"] != "PENDING" or int(found["Restarts"]) < restarts:
            assert time.monotonic() < deadline, f"job {job} is not back in the queue after {timeout_s} s, but {found}"
            time.sleep(POLL_S)
        self.run("scontrol", "update", f"jobid={job}", "starttime=now+2")

    def lose(self, node: str) -> None:
        """Ends a node as a power cut would: its daemon, the steps that it watches and their tasks, all by SIGKILL.

        The controller would miss it after SlurmdTimeout (minutes); it is told at once, as by an administrator.
        """
        tasks = [pid for pid in _processes() if self._is_task(pid, node)]
        steps = {parent for parent in map(_parent, tasks) if _command(parent).startswith("slurmstepd")}
        daemon = int((self.folder / f"slurmd.{node}.pid").read_text())
        for pid in (daemon, *steps, *tasks):  # in this order nobody is left to report the others' end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={node}", "state=DOWN", "reason=lost")

    def restore(self, node: str, timeout_s: float = 60) -> None:
        """Starts a lost node's daemon again and waits until the controller gives it work."""
        path = f"{self.environment['PATH']}:/usr/sbin"
        with open(self.folder / f"slurmd.{node}.again.log", "w") as log:
            command, environment = ["slurmd", "-N", node], {**self.environment, "PATH": path}
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=60, check=True)
        deadline = time.monotonic() + timeout_s
        while (found := self.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split()[0]) != "idle":
            assert time.monotonic() < deadline, f"{node} is not idle after {timeout_s} s, but {found}"
            time.sleep(POLL_S)

    def _is_task(self, pid: int, node: str) -> bool:
        """Whether a process belongs to a job of this cluster on that node."""
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        ours = {f"SLURM_CONF={self.folder / 'slurm.conf'}".encode(), f"SLURMD_NODENAME={node}".encode()}
        return ours <= set(variables)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    """The parent of a process, 0 if it has ended."""
    try:
        # The name, in parentheses, may have blanks in it.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
