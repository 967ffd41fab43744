"""Callers that are not as they should be: few descriptors, closed streams, missing rights, an odd name for pyoci."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from containers import COMMAND, LIMIT, Box, box, needed, until  # noqa: F401 - a fixture
from odd import refused, there, works

pytestmark = [*needed, pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")]


def python(code: str) -> tuple[str, ...]:
    """A caller in Python that becomes pyoci after `code`."""
    return (sys.executable, "-c", f"import os, signal, sys\n{code}\nos.execvp(sys.argv[1], sys.argv[1:])")


@pytest.mark.parametrize("mask", ["0", "077", "0777"])
def test_umask(box: Box, mask: str) -> None:  # noqa: F811
    script = "umask; touch /tmp/x; stat -c %a /tmp/x /dev /dev/shm /dev/null /dev/pts"
    assert works(box, f"umask {mask}", script).split() == ["0022", "644", "755", "1777", "666", "755"]


@pytest.mark.parametrize("number", [4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32])
def test_few_descriptors(box: Box, number: int) -> None:  # noqa: F811
    del box.process["rlimits"]
    done = there(box, script="ulimit -n", prefix=("sh", "-c", f'ulimit -n {number}; exec "$@"', "sh"))
    if done.returncode == 0:
        assert (done.stdout, done.stderr) == (f"{number}\n", "")
    else:
        *before, last = done.stderr.splitlines()
        assert "too many open files" in last and "internal error" not in last, done.stderr
        assert all(": while cleaning up after a failed create: " in line for line in before), done.stderr
    box.ok("delete", "--force", box.id)
    box.gone()
    assert done.returncode == 0 or number < 32  # noqa: PLR2004


@pytest.mark.parametrize("number", [6, 7, 8, 9, 10])
def test_few_descriptors_to_delete_with(box: Box, number: int) -> None:  # noqa: F811
    """A container without cgroups is its first process, and what is to be killed must be found."""
    box.process["args"] = ["sleep", "100"]
    del box.linux["resources"]
    box.write()
    null = subprocess.DEVNULL
    words = box.command("--cgroup-manager", "disabled", "run", "--detach", "--bundle", str(box.bundle), box.id)
    subprocess.run(words, check=True, timeout=LIMIT, stdin=null, stdout=null, stderr=null)
    pid = box.pid()
    for option in ((), ("--force",)):
        words = ["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh", *box.command("delete", *option, box.id)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
        runs = "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else False
        assert runs == (box.states / box.id).exists() == (done.returncode != 0), done
    box.ok("delete", "--force", box.id)


@pytest.mark.skipif(not Path("/sys/fs/cgroup/pids").is_dir(), reason="no v1 controller of pids here")
@pytest.mark.parametrize("number", [1, 2])
def test_few_processes(box: Box, number: int) -> None:  # noqa: F811
    group = Path("/sys/fs/cgroup/pids", f"{box.id}-caller")
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(number))
        done = there(box, prefix=("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "resource temporarily unavailable; " in done.stderr and "pids.max" in done.stderr
        box.gone()
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


ENVIRONMENT = ["HOME=/tmp", "PATH=/bin", "PWD=/", "SHLVL=1"]


def test_environment(box: Box) -> None:  # noqa: F811
    odd = ("LANG=xx_YY.foo", "LC_ALL=de_DE.ISO-8859-1", "TZ=:/nonexistent", "PYTHONHOME=/x", "PYTHONPATH=/y",
           "PYTHONWARNINGS=error", "LD_LIBRARY_PATH=/nonexistent", "MALLOC_PERTURB_=1")  # fmt: skip
    assert sorted(works(box, script="env", prefix=("env", *odd)).split()) == ENVIRONMENT
    assert works(box, prefix=("env", "-i")) == "inside\n"
    assert works(box, prefix=("env", "PATH=")) == "inside\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(box: Box, closed: str) -> None:  # noqa: F811
    """None of ours takes the place of one that the caller closed."""
    script = "for n in 0 1 2; do readlink /proc/self/fd/$n >>/tmp/out; done; exit 7"
    done = there(box, script=script, prefix=("sh", "-c", f'exec "$@" {closed}', "sh"))
    assert done.returncode == 7
    for line in (box.rootfs / "tmp/out").read_text().split():
        # the caller's is on a mount of its own
        assert line in ("/dev/null", "/null") or line.startswith("pipe:") or line == "/tmp/out"


IGNORED = "for n in range(1, 32):\n    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)"
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"


@pytest.mark.parametrize(
    "code",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        IGNORED,
        BLOCKED,
        "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)",  # PR_SET_CHILD_SUBREAPER
        "os.mkdir('/tmp/pyoci-gone'); os.chdir('/tmp/pyoci-gone'); os.rmdir('/tmp/pyoci-gone')",
        "os.nice(19)",
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    ],
)
def test_callers(box: Box, code: str) -> None:  # noqa: F811
    done = there(box, script="(sleep 0.05 &); grep -E 'Sig(Blk|Ign)' /proc/self/status; exit 5", prefix=python(code))
    assert (done.returncode, done.stderr) == (5, "")
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"0" * 16}


INSTALLED_ONLY = pytest.mark.skipif(not COMMAND[0].endswith("/pyoci"), reason="pyoci is not installed: run ./check")


@INSTALLED_ONLY
@pytest.mark.parametrize(
    "how",
    [
        'exec -a "" "$PYOCI" --version',
        'exec -a -pyoci "$PYOCI" --version',
        "exec -a /nonexistent/runc ./second --version",
        'exec -a "$(head -c 100000 /dev/zero | tr "\\0" x)" ./second --version',
        "PATH= exec ./second --version",
        "PATH=.:/nonexistent; exec second --version",
        'cd "$(dirname "$PYOCI")"; exec ./pyoci --version',
        'cd /; PATH=".$(dirname "$PYOCI")" exec pyoci --version',
        'exec env -i "$PYOCI" --version',
    ],
)
def test_what_it_is_called(tmp_path: Path, how: str) -> None:
    """It is found by what is executed, not by what that was called."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed: exec -a is its")
    (tmp_path / "first").symlink_to(COMMAND[0])
    (tmp_path / "second").symlink_to("first")
    done = subprocess.run(
        ["bash", "-c", how], cwd=tmp_path, env={**os.environ, "PYOCI": COMMAND[0]}, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pyoci version ")


@INSTALLED_ONLY
def test_no_name_at_all(tmp_path: Path) -> None:
    """execve(2) with an empty argv, which Linux makes into one with an empty name since 5.18."""
    code = "import ctypes, sys; p = (ctypes.c_char_p * 1)(None); ctypes.CDLL(None).execve(sys.argv[1].encode(), p, p)"
    words = [sys.executable, "-c", code, COMMAND[0]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode in (0, 1) and "Usage: pyoci" in done.stdout + done.stderr, done


def test_without_procfs(box: Box) -> None:  # noqa: F811
    done = there(box, "umount -l /proc")
    assert done.returncode != 0 and done.stderr.count("\n") == 1, done
    assert "is /proc mounted?" in done.stderr or not COMMAND[0].endswith("/pyoci")


@pytest.mark.parametrize("who", [("USER=root", "SUDO_USER=somebody", "SUDO_UID=1000"), ("USER=somebody",)])
def test_under_sudo(box: Box, who: tuple[str, ...]) -> None:  # noqa: F811
    """Root by sudo has what it keeps of its user's environment; its containers are root's all the same."""
    box.process["args"] = ["sleep", "100"]
    box.write()
    directory = box.folder / "user"
    directory.mkdir()
    variables = [f"PATH={os.defpath}", "HOME=/nonexistent", f"XDG_RUNTIME_DIR={directory}", *who]
    words = ["env", "-i", *variables, *COMMAND]
    null = subprocess.DEVNULL
    try:
        run = [*words, "run", "--detach", "--bundle", str(box.bundle), box.id]
        assert subprocess.run(run, stdin=null, stdout=null, stderr=null, timeout=LIMIT, check=False).returncode == 0
        assert Path("/run/pyoci", box.id).is_dir()
        assert list(directory.iterdir()) == []
    finally:
        subprocess.run([*words, "delete", "--force", box.id], timeout=LIMIT, check=True)


def test_nobody_reads(box: Box) -> None:  # noqa: F811
    """The pipe is the container's own: it learns that nobody reads, and its status is passed on."""
    done = there(box, script="sleep 0.2; echo x; exit 4", prefix=("sh", "-c", '{ "$@"; echo rc=$? >&2; } | true', "sh"))
    assert "rc=4" in done.stderr


def test_no_new_privileges(box: Box) -> None:  # noqa: F811
    """A caller that can gain none cannot give any, and a filter needs none."""
    box.process["noNewPrivileges"] = False
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_ERRNO"}],
    }
    text = works(box, script="grep -E '(NoNewPrivs|Seccomp):' /proc/self/status", prefix=("setpriv", "--no-new-privs"))
    assert text.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]


WITHOUT = {
    "sys_admin": "CAP_SYS_ADMIN",
    "setgid": "CAP_SETGID",
    "setpcap": "CAP_SETPCAP",
    "net_admin": "CAP_NET_ADMIN",
}


@pytest.mark.parametrize("name", WITHOUT)
def test_missing_capabilities_that_matter(box: Box, name: str) -> None:  # noqa: F811
    drop = ("setpriv", "--bounding-set", f"-{name}", "--inh-caps", f"-{name}")
    assert f"this needs {WITHOUT[name]}, which pyoci has not been given" in refused(box, prefix=drop)


@pytest.mark.parametrize("name", ["mknod", "chown", "fowner", "sys_ptrace", "sys_resource", "setuid", "sys_chroot"])
def test_missing_capabilities_that_do_not(box: Box, name: str) -> None:  # noqa: F811
    """Without CAP_MKNOD the host's devices are bound."""
    drop = ("setpriv", "--bounding-set", f"-{name}", "--inh-caps", f"-{name}")
    assert works(box, script="stat -c %t:%T /dev/null; echo >/dev/null", prefix=drop) == "1:3\n"


def test_capabilities_that_cannot_be_given(box: Box) -> None:  # noqa: F811
    drop = ("setpriv", "--bounding-set", "-audit_write", "--inh-caps", "-audit_write")
    done = there(box, script="grep CapEff /proc/self/status", prefix=drop)
    assert (done.returncode, done.stdout) == (0, "CapEff:\t0000000000000420\n")
    assert "/process/capabilities: left out" in done.stderr and "CAP_AUDIT_WRITE" in done.stderr
