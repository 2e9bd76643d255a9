"""A slow network on one machine: each process in a network namespace, joined by a bridge.

    process 0  eth0 ──┐            every link, in both directions:
    process 1  eth0 ──┤ bridge     tbf rate 100mbit
    process 2  eth0 ──┘

The namespaces have no names: they belong to processes that hold them open, and the kernel removes
them, with all their links, when the last of these ends. So there is nothing to clean up but
processes. Gloo listens where the host's name points to, so each namespace also has a host name of
its own, and an /etc/hosts that only it sees: a file in the temporary folder, which SIGKILL leaves.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from signax.experiments.errors import UsageError

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
_PORT = 45871  # of JAX's coordinator: in a namespace nobody else has it
_NETWORK = "10.213.0"
# Every kernel has Reno. BBR, a default on some, paces a connection by the share of the link that it
# last measured: three times too slow where collectives take turns.
_CONGESTION_CONTROL = "reno"
# A queue of 200 ms does not drop packets at these rates; a burst of 1 ms hides no transfer.
_QUEUE = ("latency", "200ms")


class SlowNetwork(NamedTuple):
    """How to start a process at each place of the network."""

    prefixes: list[list[str]]  # put before the command
    address: str  # where process 0 listens


def require_possible() -> None:
    """Raises a `UsageError` unless this machine and user can make namespaces."""
    if sys.platform != "linux":
        raise UsageError(
            f"--bandwidth uses Linux network namespaces, and this is {sys.platform}: leave it out."
        )
    if os.geteuid() != 0:
        raise UsageError(
            "--bandwidth makes network namespaces, which needs root: run it with sudo, or leave it"
            " out to measure the loopback."
        )
    for tool, package in _TOOLS.items():
        if not shutil.which(tool):
            raise UsageError(f"--bandwidth needs `{tool}`: apt-get install {package}.")


@contextlib.contextmanager
def slow_network(num: int, bandwidth: int) -> Iterator[SlowNetwork]:
    """Joins `num` namespaces at so many bits per second for as long as the context lasts."""
    require_possible()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signax-bench-")))
        hosts = folder / "hosts"
        addresses = [f"{_NETWORK}.{rank + 1}" for rank in range(num)]
        lines = [f"{address} {_host(rank)}" for rank, address in enumerate(addresses)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        bridge = _hold(stack)
        _inside(bridge, "ip link add bridge type bridge", "ip link set bridge up")
        prefixes = []
        for rank, address in enumerate(addresses):
            place = _hold(stack)
            _connect(bridge, place, f"port{rank}", address, bandwidth)
            prefixes.append(_prefix(place, _host(rank), hosts))
        yield SlowNetwork(prefixes, f"{addresses[0]}:{_PORT}")


def _hold(stack: contextlib.ExitStack) -> int:
    """A process that does nothing but hold a new network namespace open; its id."""
    # `cat` ends when its standard input closes: when this process ends, however it ends.
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    stack.enter_context(holder)  # closes the pipes and waits
    stack.callback(holder.kill)
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline() != "ready\n":
        raise _refused("unshare --net", holder.stderr.read())
    return holder.pid


def _connect(bridge: int, place: int, port: str, address: str, bandwidth: int) -> None:
    burst = max(32_000, bandwidth // 8 // 1000)  # bytes: 1 ms
    shape = ["tbf", "rate", f"{bandwidth}bit", "burst", str(burst), *_QUEUE]
    shape = " ".join(shape)
    _run(f"ip link add {port} netns {bridge} type veth peer name eth0 netns {place}")
    _inside(bridge, f"ip link set {port} master bridge up", f"tc qdisc add dev {port} root {shape}")
    _inside(
        place,
        "ip link set lo up",
        f"ip address add {address}/24 dev eth0",
        "ip link set eth0 up",
        f"tc qdisc add dev eth0 root {shape}",
    )
    set_congestion = f"echo {_CONGESTION_CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control"
    _run(f"nsenter --target {place} --net sh -c", set_congestion)


def _prefix(place: int, host: str, hosts: Path) -> list[str]:
    """Enters the namespace, and there takes a host name and an /etc/hosts that only it sees."""
    setup = f'hostname {host}; mount --bind {hosts} /etc/hosts; exec "$@"'
    enter = ["nsenter", "--target", str(place), "--net"]
    return [*enter, "unshare", "--uts", "--mount", "sh", "-e", "-c", setup, "sh"]


def _inside(place: int, *commands: str) -> None:
    for command in commands:
        _run(f"nsenter --target {place} --net {command}")


def _run(command: str, *arguments: str) -> None:
    whole = [*command.split(), *arguments]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _refused(" ".join(whole), done.stderr)


def _refused(command: str, reason: str) -> UsageError:
    return UsageError(
        f"--bandwidth: this machine refuses `{command}`: {reason.strip()}. In a container, network"
        " namespaces need the capabilities NET_ADMIN and SYS_ADMIN."
    )


def _host(rank: int) -> str:
    return f"worker{rank}"
