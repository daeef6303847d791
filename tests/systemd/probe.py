"""Tries what syncd's unit forbids, each attempt in a process of its own, and prints what came of it.

As JSON: for each attempt "done", "refused" (an error that Python reports) or "killed"; and how many filters
of system calls are in force. Nothing stays changed but for LEFT_BEHIND. It needs nothing but Python.
"""

import ctypes
import json
import mmap
import os
import re
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

OPEN = Path("/srv/open")
"""A folder that everybody may write to. It and the next four are prepared by the test."""
SUID = OPEN / "id"
OTHERS_FILE = Path("/tmp/of-another-user")
KERNEL_LOG = Path("/dev/kmsg")
MODULES = Path("/usr/lib/modules")
LEFT_BEHIND = 0x5D5D
"""The key of shared memory that is not removed."""

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
IPC_CREAT = 0o1000
NOBODY = 65534
PER_LINUX32 = 8
PTRACE_TRACEME = 0
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a function of libc's. Raises OSError where it fails."""
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def check(*, worked: bool) -> None:
    """Raise OSError unless what was tried is seen to have worked."""
    if not worked:
        raise OSError


def write(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder):
        pass


def see(path: Path) -> None:
    """Look at a path that is there and not empty."""
    check(worked=bool(list(path.iterdir()) if path.is_dir() else path.read_bytes()))


def use_device() -> None:
    os.close(os.open("/dev/net/tun", os.O_RDWR))


def set_kernel_parameter() -> None:
    """Write a setting of the machine's own network as it is."""
    path = Path("/proc/sys/net/ipv4/ip_forward")
    path.write_text(path.read_text())


def make_control_group() -> None:
    path = Path("/sys/fs/cgroup/syncd-probe")
    path.mkdir()
    path.rmdir()


def mount_for_everybody() -> None:
    """Mount something that the machine's first process sees."""
    call("mount", b"tmpfs", bytes(OPEN), b"tmpfs", 0, None)
    mounted = f" {OPEN} " in Path("/proc/1/mountinfo").read_text()
    call("umount", bytes(OPEN))
    check(worked=mounted)


def make_netlink_socket() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def make_suid_file() -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0o4700)


def gain_by_suid_program() -> None:
    """Become root by a program of root's, a copy of `id`."""
    check(worked=subprocess.run([SUID, "-u"], capture_output=True, check=False).stdout == b"0\n")


def map_writable_code() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def make_data_code() -> None:
    """Make memory executable that was writable before."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call("mprotect", ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


def schedule_in_real_time() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def change_owner(user: int) -> None:
    """Change the owner of a file: to oneself anybody may, to others root."""
    with tempfile.NamedTemporaryFile() as file:
        os.chown(file.name, user, -1)


def run_32_bit_program() -> None:
    """Run an ELF program of the older kind of processor, whose calls a filter could overlook: exit(42)."""
    code = bytes.fromhex("b801000000 bb2a000000 cd80")  # mov eax, 1; mov ebx, 42; int 0x80
    base, start = 0x08048000, 52 + 32
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, start + len(code), start + len(code), 5, mmap.PAGESIZE)
    file = os.memfd_create("program")
    os.write(file, b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + header + segment + code)
    status = os.spawnv(os.P_WAIT, f"/proc/self/fd/{file}", ["program"])
    if status < 0:
        os.kill(os.getpid(), -status)
    check(worked=status == 42)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "gain by a set-user-ID program": gain_by_suid_program,
    "give a file away": partial(change_owner, NOBODY),
    "write to /usr": partial(write, Path("/usr")),
    "write to /etc": partial(write, Path("/etc")),
    "write where all may": partial(write, OPEN),
    "write where all may in /run": partial(write, Path("/run/lock")),
    "see homes": partial(see, Path("/home")),
    "see others' temporary files": partial(see, OTHERS_FILE),
    "mount for everybody": mount_for_everybody,
    "see hardware": Path("/dev/net/tun").stat,
    "use a device": use_device,
    "make a control group": make_control_group,
    "rename the machine": lambda: socket.sethostname(socket.gethostname()),
    "see the kernel's log": partial(see, KERNEL_LOG),
    "see kernel modules": partial(see, MODULES),
    "set a kernel parameter": set_kernel_parameter,
    "see others' processes": Path("/proc/1").stat,
    "see what is no process": partial(see, Path("/proc/uptime")),
    "leave shared memory": partial(call, "shmget", LEFT_BEHIND, mmap.PAGESIZE, IPC_CREAT | 0o600),
    "make a netlink socket": make_netlink_socket,
    "make a user namespace": partial(call, "unshare", CLONE_NEWUSER),
    "make a network namespace": partial(call, "unshare", CLONE_NEWNET),
    "schedule in real time": schedule_in_real_time,
    "make a set-user-ID file": make_suid_file,
    "change the execution domain": partial(call, "personality", PER_LINUX32),
    "map writable code": map_writable_code,
    "make data code": make_data_code,
    "run a 32-bit program": run_32_bit_program,
    "change an owner": lambda: change_owner(os.geteuid()),
    "be traced": partial(call, "ptrace", PTRACE_TRACEME, 0, None, None),
    "change its priority": partial(os.nice, 1),
}


def outcome(attempt: Callable[[], object]) -> str:
    """Return what comes of an attempt in a process of its own."""
    child = os.fork()
    if not child:
        status = 2  # a mistake here, neither done nor refused
        try:
            attempt()
            status = 0
        except OSError:
            status = 1
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(ended) else ("done", "refused", "broken")[os.WEXITSTATUS(ended)]


def main() -> None:
    """Try everything."""
    (filters,) = re.findall(r"^Seccomp_filters:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    came_of = {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
    print(json.dumps({"filters": int(filters), "came of": came_of}))  # noqa: T201


if __name__ == "__main__":
    main()
