"""Real SSH servers on loopback addresses, each a host of its own as far as SSH can tell; keys are thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
"""From Debian's openssh-server. It must be named by its full path: it starts itself again for each connection."""


def installed() -> bool:
    return Path(SSHD).exists() and shutil.which("ssh-keygen") is not None


@dataclass
class Sshd:
    """The servers, and what a client needs."""

    folder: Path
    port: int
    addresses: tuple[str, ...]
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def key(self) -> Path:
        return self.folder / "user"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def section(self, **hosts: Any) -> dict[str, Any]:
        """`cluster.ssh` of these servers; keyword arguments go into each host."""
        return {
            "hosts": [{"host": a, "name": f"host{n}", **hosts} for n, a in enumerate(self.addresses)],
            "user": None,
            "port": self.port,
            "key": str(self.key),
            "known_hosts": str(self.known_hosts),
            "config": None,
            "connect_s": 15,
        }

    def overrides(self) -> list[str]:
        """`section`, as a user types what is not the default."""
        section = self.section()
        listed = ",".join(f"{{host: {host['host']}, name: {host['name']}}}" for host in section["hosts"])
        typed = [f"cluster.ssh.{key}={section[key]}" for key in ("port", "key", "known_hosts")]
        return ["cluster=ssh", f"cluster.ssh.hosts=[{listed}]", *typed, "cluster.ssh.config=null"]

    def start(self, address: str) -> None:
        """One server; it serves when this returns."""
        with (self.folder / f"{address}.log").open("ab") as log:
            self.servers[address] = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self._config(address))], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((address, self.port)) == 0:
                    return
            assert self.servers[address].poll() is None, (self.folder / f"{address}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, address: str) -> None:
        """End one server and every connection it has: the host is gone, its processes live on."""
        server = self.servers.pop(address)
        below = _below(server.pid)
        server.terminate()
        server.wait()
        for pid in below:
            try:
                name = Path(f"/proc/{pid}/comm").read_text()
            except OSError:
                continue
            if name.startswith("sshd"):
                os.kill(pid, signal.SIGKILL)

    def _config(self, address: str) -> Path:
        path = self.folder / f"{address}.conf"
        path.write_text(
            f"ListenAddress {address}\nPort {self.port}\nHostKey {self.folder}/host-{address}\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nUsePAM no\nStrictModes no\nPrintMotd no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            # What a session's environment is made from; a test's own leases and temp-dirs come to the host with it.
            f"SetEnv SWEEPER_RUNTIME={self.folder}/runtime-{address} PATH={os.environ['PATH']}\n"
        )
        return path


def _below(pid: int) -> list[int]:
    """The processes below that one."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_below(child)]
    return found


@contextmanager
def serving(folder: Path, addresses: Sequence[str] = ("127.0.0.2", "127.0.0.3")) -> Iterator[Sshd]:
    """Servers on those addresses, with one port, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it; its package makes it only where systemd runs
    sshd = Sshd(folder, _free_port(addresses), tuple(addresses))
    for name in ("user", *(f"host-{address}" for address in addresses)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    known = [f"[{a}]:{sshd.port} {(folder / f'host-{a}.pub').read_text()}" for a in addresses]
    sshd.known_hosts.write_text("".join(known))
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    try:
        for address in addresses:
            sshd.start(address)
        yield sshd
    finally:
        for address in list(sshd.servers):
            sshd.stop(address)


def _free_port(addresses: Sequence[str]) -> int:
    """A port that is free on all of them."""
    while True:
        with socket.socket() as probe:
            probe.bind((addresses[0], 0))
            port: int = probe.getsockname()[1]
        try:
            for address in addresses[1:]:
                with socket.socket() as other:
                    other.bind((address, port))
        except OSError:
            continue
        return port
