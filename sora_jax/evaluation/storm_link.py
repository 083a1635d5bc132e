"""Two network namespaces of this machine, joined by a virtual cable that can be pulled: two hosts for all a run knows.

Needs root and the command `ip`. Each host finds its own name at its own address, as it would on a cluster.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

NETNS = Path("/etc/netns")
"""`ip netns exec NAME` shows the files of NETNS/NAME in place of those in /etc"""


class Link:
    """Two hosts and their cable, while it is entered. Raises UserError where that is not allowed."""

    addresses = ("10.213.57.1", "10.213.57.2")
    _cable = "storm"

    def __init__(self) -> None:
        self._names = [f"storm-{os.getpid()}-{i}" for i in range(2)]

    def __enter__(self) -> "Link":
        first, second = self._names
        try:
            for name, address in zip(self._names, self.addresses, strict=True):
                (NETNS / name).mkdir(parents=True)
                (NETNS / name / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
                _ip("netns", "add", name)
            ends = ("type", "veth", "peer", "name", self._cable, "netns", second)
            _ip("link", "add", self._cable, "netns", first, *ends)
            for name, address in zip(self._names, self.addresses, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/30", "dev", self._cable)
                for device in (self._cable, "lo"):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(NETNS / name, ignore_errors=True)

    def inside(self, host: int, command: list[str]) -> list[str]:
        """`command` as run on host 0 or 1; `ip` becomes the command, so that signals reach it."""
        return ["ip", "netns", "exec", self._names[host], *command]

    def cut(self) -> None:
        """Pulls the cable."""
        _ip("-n", self._names[0], "link", "set", self._cable, "down")


def check_link() -> None:
    """Raises UserError where network namespaces cannot be made."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise UserError(
            "the kind 'link' needs root and the command `ip` (Debian's iproute2); leave it out: "
            "--kinds sigkill,sigterm,mid_save,sigterm_in_save,one_of_two"
        )
    with Link():
        pass


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}; leave 'link' out of --kinds")
