"""Seccomp filters of real containers: what each action, operator, architecture and flag does to calls made inside."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, agent  # noqa: F401 - agent is a fixture
from containers import LIMIT, Box, box, needed, processes_of, until  # noqa: F401 - box is a fixture
from filters import OPERATORS

from pyoci.container import listener
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Died
from pyoci.plan.listener import EXPECTED
from pyoci.plan.ops import RUNTIME, Op
from pyoci.program import Program
from pyoci.spec.types import Seccomp

pytestmark = needed
NR = numbers(platform.machine())
GETPRIORITY = {"x86_64": 140, "aarch64": 141}[platform.machine()]
MARK = 77  # an errno that no call here gives by itself
intel = pytest.mark.skipif(platform.machine() != "x86_64", reason="a machine with two tables of system calls")

# Makes the calls that it is told, "number,argument,...", and says what each returned: -1 and errno as -errno.
# "i386,..." makes it by the 32-bit table.
CALLS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <signal.h>
#include <sys/syscall.h>
static void trapped(int n, siginfo_t *i, void *c)
{
    printf("trap %d %d\n", i->si_syscall, i->si_errno);
    fflush(stdout);
    _exit(0);
}
static int in_thread(void *number)
{
    syscall(atol(number), 0);
    puts("not killed");
    return 0;
}
int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
    setvbuf(stdout, 0, _IONBF, 0);
    if (argc > 1 && !strcmp(argv[1], "catch")) {
        sigaction(SIGSYS, &action, 0);
        argv++, argc--;
    }
    if (argc > 1 && !strcmp(argv[1], "thread")) {
        static char stack[65536] __attribute__((aligned(16)));
        int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
        clone(in_thread, stack + sizeof stack, flags, argv[2]);
        usleep(200000);
        return puts("the others live") < 0;
    }
    for (int n = 1; n < argc; n++) {
        long a[7] = {0}, result;
        int i = 0, old = 0;
        for (char *word = strtok(argv[n], ","); word && i < 7; word = strtok(0, ","))
            if (!strcmp(word, "i386"))
                old = 1;
            else
                a[i++] = strtoull(word, 0, 0);
        if (old) {
#ifdef __x86_64__
            __asm__ volatile("int $0x80"
                             : "=a"(result)
                             : "a"(a[0]), "b"(a[1]), "c"(a[2]), "d"(a[3])
                             : "memory", "r8", "r9", "r10", "r11");
            result = (int)result;
#endif
        } else {
            errno = 0;
            result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
            if (result == -1 && errno)
                result = -errno;
        }
        printf("%ld\n", result);
    }
    return 0;
}
"""


@pytest.fixture
def calls(box: Box) -> Callable[..., list[str]]:  # noqa: F811
    """`calls("39", ...)`: what the calls returned, in a container with box's filter."""
    box.compile("calls", CALLS)

    def run(*args: str, status: int = 0) -> list[str]:
        box.process["args"] = ["calls", *args]
        box.write()
        done = box("run", "--bundle", str(box.bundle), box.id)
        assert done.returncode == status, done
        return done.stdout.split("\n")[:-1]

    return run


def seccomp(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [*rules]} | more


def rule(name: str, action: str, **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": action} | more


GETSID = str(124 if platform.machine() == "x86_64" else 156)


# Actions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "more", "output", "status"),
    [
        ("SCMP_ACT_ALLOW", {}, ["1"], 0),
        ("SCMP_ACT_LOG", {}, ["1"], 0),
        ("SCMP_ACT_ERRNO", {}, [f"-{errno.EPERM}"], 0),
        ("SCMP_ACT_ERRNO", {"errnoRet": MARK}, [f"-{MARK}"], 0),
        ("SCMP_ACT_ERRNO", {"errnoRet": 0}, ["0"], 0),
        ("SCMP_ACT_TRACE", {}, [f"-{errno.ENOSYS}"], 0),  # nobody traces
        ("SCMP_ACT_TRACE", {"errnoRet": 5}, [f"-{errno.ENOSYS}"], 0),
        ("SCMP_ACT_TRAP", {}, [f"trap {GETSID} 0"], 0),
        ("SCMP_ACT_KILL", {}, [], 128 + signal.SIGSYS),
        ("SCMP_ACT_KILL_THREAD", {}, [], 128 + signal.SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", {}, [], 128 + signal.SIGSYS),
    ],
)
def test_actions(
    box: Box,  # noqa: F811
    calls: Callable[..., list[str]],
    action: str,
    more: dict[str, Any],
    output: list[str],
    status: int,
) -> None:
    box.linux["seccomp"] = seccomp(rule("getsid", action, **more))
    assert calls("catch", GETSID, status=status) == output


def test_default_action_and_its_errno(box: Box, calls: Callable[..., list[str]]) -> None:  # noqa: F811
    names = [
        "execve", "exit_group", "write", "brk", "arch_prctl", "set_tid_address", "mmap", "mprotect", "set_robust_list",
        "rseq", "prlimit64", "readlinkat", "readlink", "getrandom", "newfstatat", "fstat", "ioctl", "faccessat2",
    ]  # fmt: skip
    allow = {"names": names, "action": "SCMP_ACT_ALLOW"}
    box.linux["seccomp"] = seccomp(allow, defaultAction="SCMP_ACT_ERRNO")
    new = NR["faccessat2"] + 1
    # not listed; newer than all that are listed
    assert calls(GETSID, str(new), "1000") == ["-1", f"-{errno.ENOSYS}", f"-{errno.ENOSYS}"]
    box.linux["seccomp"]["defaultErrnoRet"] = MARK
    assert calls(GETSID, str(new)) == [f"-{MARK}", f"-{errno.ENOSYS}"]


# Operators -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("op", "value", "two", "matching", "other"), OPERATORS)
def test_operators(  # noqa: PLR0913 - a row of the table
    box: Box,  # noqa: F811
    calls: Callable[..., list[str]],
    op: str,
    value: int,
    two: int,
    matching: tuple[int, ...],
    other: tuple[int, ...],
) -> None:
    """getpriority of a kind that does not exist is EINVAL, unless the filter answers first."""
    args = [{"index": 0, "value": value, "valueTwo": two, "op": op}]
    box.linux["seccomp"] = seccomp(rule("getpriority", "SCMP_ACT_ERRNO", errnoRet=MARK, args=args))
    found = calls(*(f"{GETPRIORITY},{number}" for number in (*matching, *other)))
    assert found == [f"-{MARK}"] * len(matching) + [f"-{errno.EINVAL}"] * len(other)


# Architectures and flags ---------------------------------------------------------------------------------------------

GETSID_I386 = "i386,147"


@intel
def test_architectures(box: Box, calls: Callable[..., list[str]]) -> None:  # noqa: F811
    """The 32-bit table has other numbers: its calls are the filter's only where it is listed, and kill elsewhere."""
    refuse = rule("getsid", "SCMP_ACT_ERRNO", errnoRet=MARK)
    assert calls(GETSID_I386) == ["1"]  # this kernel has such calls
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    box.linux["seccomp"] = seccomp(refuse, architectures=both)
    # and 147 of the one is another call of the other
    assert calls(GETSID, GETSID_I386, "i386,20") == [f"-{MARK}", f"-{MARK}", "1"]
    box.linux["seccomp"] = seccomp(refuse, architectures=["SCMP_ARCH_X86"])
    assert calls(GETSID, GETSID_I386) == [f"-{MARK}", f"-{MARK}"]  # the machine's own is always there
    box.linux["seccomp"] = seccomp(refuse, architectures=["SCMP_ARCH_X86_64"])
    assert calls(GETSID, GETSID_I386, status=128 + signal.SIGSYS) == [f"-{MARK}"]
    names = [
        "execve", "exit_group", "write", "brk", "arch_prctl", "set_tid_address", "mmap", "mprotect", "openat2",
        "set_robust_list", "rseq", "prlimit64", "readlinkat", "readlink", "getrandom", "newfstatat", "fstat",
    ]  # fmt: skip
    allow = {"names": names, "action": "SCMP_ACT_ALLOW"}
    box.linux["seccomp"] = seccomp(allow, defaultAction="SCMP_ACT_ERRNO", architectures=both)
    assert calls(GETSID_I386, "i386,438", "i386,1000", "438", "1000") == [
        "-1", f"-{errno.ENOSYS}", f"-{errno.ENOSYS}", f"-{errno.ENOSYS}", f"-{errno.ENOSYS}",
    ]  # fmt: skip


def kernel_log() -> str:
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("flag", [False, True])
def test_log_flag(box: Box, calls: Callable[..., list[str]], flag: bool) -> None:  # noqa: F811
    """With the flag the kernel writes down what it refuses; without only what SCMP_ACT_LOG names."""
    if "type=1326" not in kernel_log():
        box.linux["seccomp"] = seccomp(rule("getsid", "SCMP_ACT_LOG"))
        calls(GETSID)
        if "type=1326" not in kernel_log():
            pytest.skip("this kernel says nothing of its audit in its log")
    name = f"log{os.getpid()}{int(flag)}"
    shutil.copy(box.rootfs / "bin/calls", box.rootfs / "bin" / name)
    box.linux["seccomp"] = seccomp(rule("getsid", "SCMP_ACT_ERRNO"))
    if flag:
        box.linux["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_LOG"]
    box.process["args"] = [name, GETSID]
    assert box.run() == "-1\n"
    assert (f'comm="{name}"' in kernel_log()) == flag


# NOTIFY --------------------------------------------------------------------------------------------------------------


def notified(agent: Agent, *names: str, **more: Any) -> dict[str, Any]:  # noqa: F811
    asked = seccomp({"names": list(names), "action": "SCMP_ACT_NOTIFY"}, listenerPath=agent.path)
    return asked | more


def test_agent_answers_for_the_kernel(box: Box, calls: Callable[..., list[str]], agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid", "getpriority", listenerMetadata="opaque \U0001f980")
    box.config["annotations"] = {"org.example.key": "value"}
    agent.answers[int(GETSID)] = 4242
    agent.answers[GETPRIORITY] = -MARK
    assert calls(GETSID, f"{GETPRIORITY},0,0") == ["4242", f"-{MARK}"]
    (told,) = agent.told
    assert told.descriptors == 1
    assert told.message["ociVersion"] == "1.3.0"
    assert told.message["fds"] == ["seccompFd"]
    assert told.message["metadata"] == "opaque \U0001f980"
    state = told.message["state"]
    assert state["status"] == "creating"
    assert state["id"] == box.id and state["bundle"] == str(box.bundle)
    assert state["pid"] == told.message["pid"] > 1
    assert state["annotations"] == {"org.example.key": "value"}
    # the pid is the runtime's, and so the one that the agent is notified of
    assert {pid for _, pid in agent.notified} == {told.message["pid"]}


def test_agent_gets_it_at_create(box: Box, calls: Callable[..., list[str]], agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid")
    agent.answers[int(GETSID)] = 7
    box.create(f"exec calls {GETSID}")
    (told,) = until(lambda: agent.told)
    pid = int(box.state()["pid"])
    assert told.message["pid"] == pid
    # the container does not have it, nor a process too many
    links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [link for link in links if "seccomp" in link]
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    box("start", box.id)
    until(lambda: agent.notified == [(int(GETSID), pid)])


def test_exec_has_a_listener_of_its_own(box: Box, calls: Callable[..., list[str]], agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid", listenerMetadata="m")
    box.start("exec sleep 100")
    agent.answers[int(GETSID)] = 9
    assert box.exec("calls", GETSID) == "9\n"
    until(lambda: len(agent.told) == 2)
    first, second = agent.told
    assert second.message["state"]["status"] == "running"
    assert second.message["state"]["pid"] == first.message["pid"] == int(box.state()["pid"])
    assert second.message["pid"] not in (0, first.message["pid"])
    assert agent.notified == [(int(GETSID), second.message["pid"])]
    assert second.message["metadata"] == "m"


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("way", ["run", "create", "exec"])
def test_every_call_of_inits_may_be_notified(
    box: Box,  # noqa: F811
    agent: Agent,  # noqa: F811
    no_new_privileges: bool,
    user: int,
    way: str,
) -> None:
    """Even all of them: nothing is between the filter and the agent but ourselves, and we do not wait for it."""
    box.process["noNewPrivileges"] = no_new_privileges
    box.process["user"] = {"uid": user, "gid": user}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": agent.path}
    if way == "run":
        assert box.run("echo fine") == "fine\n"
    elif way == "create":
        (box.rootfs / "tmp").chmod(0o777)
        box.start("echo fine >/tmp/out")
        assert box.output() == "fine\n"
    else:
        box.start("exec sleep 100")
        assert box.exec("echo", "fine") == "fine\n"
    assert {NR["read"], NR["execve"]} <= {number for number, _ in agent.notified}
    assert len(agent.told) == (2 if way == "exec" else 1)


def test_program_finds_no_child_and_no_listener(box: Box, agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid")
    for _ in range(5):
        script = "cat /proc/1/task/1/children; echo .; for fd in /proc/1/fd/*; do readlink $fd; done"
        box.process["args"] = ["sh", "-c", script]
        box.write()
        id = box.new_id()
        box.linux["cgroupsPath"] = f"/{id}"
        done = box("run", "--bundle", str(box.bundle), id)
        children, _, links = done.stdout.partition(".")
        assert len(children.split()) <= 1  # cat
        assert "seccomp" not in links and "memfd" not in links, done


def test_hooks_with_a_listener(box: Box, agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "write", "read", "getsid")
    box.config["hooks"] = {"startContainer": [{"path": "/bin/touch", "args": ["touch", "/tmp/hook"]}]}
    box.start("exec sleep 100")
    assert (box.rootfs / "tmp/hook").exists()
    assert NR["write"] in {number for number, _ in agent.notified}
    assert len(agent.told) == 2  # of the container's listener, and of the hook's


def test_hooks_of_the_image_are_filtered(box: Box) -> None:  # noqa: F811
    """What the profile keeps from an image's program it keeps from its hook."""
    box.linux["seccomp"] = seccomp(rule("mkdir", "SCMP_ACT_ERRNO"), rule("mkdirat", "SCMP_ACT_ERRNO"))
    script = "mkdir /tmp/made; grep -e ^Seccomp: -e ^CapEff: /proc/self/status > /tmp/hook"
    box.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]}
    box.start("grep -e ^Seccomp: -e ^CapEff: /proc/self/status > /tmp/program; exec sleep 100")
    until(lambda: box.output("program").count("\n") == 2)
    assert box.output("hook") == box.output("program") and "Seccomp:\t2" in box.output("hook")
    assert not (box.rootfs / "tmp/made").exists()


def test_terminal_with_a_listener(box: Box, agent: Agent) -> None:  # noqa: F811
    path = str(box.folder / "console.sock")
    console = socket.socket(socket.AF_UNIX)
    console.bind(path)
    console.listen(1)
    box.process["terminal"] = True
    box.linux["seccomp"] = notified(agent, "getsid")
    box.create("exec sleep 100", "--console-socket", path)
    connection, _ = console.accept()
    _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    assert os.isatty(fds[0])
    until(lambda: agent.told)
    os.close(fds[0])
    connection.close()
    console.close()


@pytest.mark.parametrize(
    "flags",
    [
        ["SECCOMP_FILTER_FLAG_TSYNC"],
        ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        [
            "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ],
    ],
)  # fmt: skip
def test_flags_with_a_listener(
    box: Box,  # noqa: F811
    calls: Callable[..., list[str]],
    agent: Agent,  # noqa: F811
    flags: list[str],
) -> None:
    box.linux["seccomp"] = notified(agent, "getsid", flags=flags)
    agent.answers[int(GETSID)] = 5
    assert calls(GETSID) == ["5"]


@pytest.mark.parametrize("way", ["run", "create", "exec"])
@pytest.mark.parametrize("how", ["absent", "refusing", "file"])
def test_agent_that_is_not_there(box: Box, agent: Agent, how: str, way: str) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid")
    if way == "exec":
        box.start("exec sleep 100")
    agent.close()
    if how != "refusing":
        os.unlink(agent.path)
    if how == "file":
        Path(agent.path).write_text("")
    if way == "exec":
        done = box("exec", box.id, "true")
    else:
        box.process["args"] = ["true"]
        box.write()
        done = box(way, "--bundle", str(box.bundle), box.id)
    assert done.returncode != 0
    words = {"absent": "no such file", "refusing": "connection refused", "file": "is not a socket"}[how]
    assert "/linux/seccomp/listenerPath" in done.stderr and words in done.stderr and agent.path in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if way == "exec":
        assert box.state()["status"] == "running"
        until(lambda: len(processes_of(box.id)) == 1)
    else:
        box.gone()


def test_agent_that_hangs_up_first(box: Box, agent: Agent) -> None:  # noqa: F811
    """A message that does not fit its buffer, and an agent that closes without reading it."""
    agent.rude = True
    box.config["annotations"] = {"org.example.long": "x" * (4 << 20)}
    box.linux["seccomp"] = notified(agent, "getsid")
    box.process["args"] = ["true"]
    box.write()
    done = box("create", "--bundle", str(box.bundle), box.id)
    assert done.returncode != 0 and "/linux/seccomp/listenerPath: sendmsg" in done.stderr
    box.gone()


def test_agent_that_ends_later(box: Box, calls: Callable[..., list[str]], agent: Agent) -> None:  # noqa: F811
    """seccomp_unotify(2): nobody is left to ask, ENOSYS."""
    agent.forgetful = True
    box.linux["seccomp"] = notified(agent, "getsid")
    assert calls(GETSID) == [f"-{errno.ENOSYS}"]


@pytest.mark.parametrize("call", ["read", "accept4", "close"])
def test_filter_that_stops_init_is_found_before(box: Box, agent: Agent, call: str) -> None:  # noqa: F811
    """With a listener the filter is there from create on; what it would break is known without trying."""
    box.linux["seccomp"] = notified(agent, "getsid")
    box.linux["seccomp"]["syscalls"].append(rule(call, "SCMP_ACT_ERRNO"))
    box.process["args"] = ["true"]
    box.write()
    done = box("create", "--bundle", str(box.bundle), box.id)
    assert done.returncode != 0 and f"refuses {call}," in done.stderr
    box.gone()


def test_listener_needs_a_path(box: Box) -> None:  # noqa: F811
    box.linux["seccomp"] = seccomp(rule("getsid", "SCMP_ACT_NOTIFY"))
    box.process["args"] = ["true"]
    box.write()
    done = box("create", "--bundle", str(box.bundle), box.id)
    assert done.returncode != 0 and "/linux/seccomp/listenerPath" in done.stderr
    box.gone()


def test_killed_while_the_agent_is_told(box: Box, agent: Agent) -> None:  # noqa: F811
    """kill -9 of create between the filter and "created": init notices, and delete --force removes the rest."""
    agent.deaf = True
    box.config["annotations"] = {"org.example.long": "x" * (4 << 20)}
    box.linux["seccomp"] = notified(agent, "getsid")
    box.process["args"] = ["true"]
    box.write()
    create = subprocess.Popen(box.command("create", "--bundle", str(box.bundle), box.id), stderr=subprocess.DEVNULL)
    until(lambda: agent.connections, "connection")
    until(lambda: processes_of(box.id))
    create.kill()
    create.wait(LIMIT)
    until(lambda: not processes_of(box.id), "init's end")
    assert json.loads(box("state", box.id).stdout)["status"] == "stopped"
    assert box("delete", "--force", box.id).returncode == 0
    box.gone()


def settled(box: Box, id: str) -> bool:  # noqa: F811
    return not processes_of(id) or box.state(id)["status"] == "created"


def test_killed_at_any_moment(box: Box, agent: Agent) -> None:  # noqa: F811
    """kill -9 of create: whatever there is then, init ends or waits for start, and delete --force removes it."""
    box.linux["seccomp"] = notified(agent, "getsid")
    start = time.monotonic()
    box.create("exec sleep 100")
    duration = time.monotonic() - start
    for step in range(16):
        id = box.new_id()
        box.write(id)
        create = subprocess.Popen(
            box.command("create", "--bundle", str(box.bundle), id),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(duration * step / 12)
        create.kill()
        create.wait(LIMIT)
        until(partial(settled, box, id), "a container that waits for start, or none")
        box("delete", "--force", id)
        box.gone(id)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "ptrace"), reason="no ptrace(2) in this C library")
def test_tracer_is_told_the_number(box: Box, calls: Callable[..., list[str]]) -> None:  # noqa: F811
    """SCMP_ACT_TRACE: its errnoRet is what PTRACE_GETEVENTMSG says (ptrace(2), PTRACE_EVENT_SECCOMP)."""
    box.linux["seccomp"] = seccomp(rule("getsid", "SCMP_ACT_TRACE", errnoRet=1234))
    box.create(f"exec calls {GETSID}")
    pid = box.pid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    seize, message, detach, trace_seccomp = 0x4206, 0x4201, 17, 0x80
    assert libc.ptrace(seize, pid, None, trace_seccomp) == 0, os.strerror(ctypes.get_errno())
    box.ok("start", box.id)
    # the children that are waited for here are others' threads too: __WALL
    got, status = os.waitpid(pid, 0x40000000)
    assert (got, status >> 8) == (pid, signal.SIGTRAP | 7 << 8)  # PTRACE_EVENT_SECCOMP
    told = ctypes.c_ulong()
    assert libc.ptrace(message, pid, None, ctypes.byref(told)) == 0
    assert told.value == 1234
    libc.ptrace(detach, pid, None, None)
    until(lambda: box.status() == "stopped")


def test_no_process_to_hand_it_over(box: Box, agent: Agent) -> None:  # noqa: F811
    """Before the filter is loaded, so with an answer."""
    box.linux["resources"] = {"pids": {"limit": 1}}
    box.linux["seccomp"] = notified(agent, "getsid")
    error = box.refused(command="create")
    assert "/linux/seccomp/listenerPath: spawn(" in error and "pids.limit" in error
    assert agent.told == []


def test_helper_that_is_killed(monkeypatch: pytest.MonkeyPatch, agent: Agent) -> None:  # noqa: F811
    """Nobody would tell the runtime: it waits some seconds for the listener, and not for ever."""
    monkeypatch.setattr(listener, "PATIENCE", 0.05)
    filter_ = Seccomp(default_action="SCMP_ACT_NOTIFY", listener_path=agent.path)
    program = Program(b"", [], {})
    session = listener.ListeningSession(program, lambda op, session: None, filter_, "/", lambda pid: {})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session.control = ours
    session._perform(Op(EXPECTED, (), "", performer=RUNTIME))
    with pytest.raises(Died, match="did not hand over the listener"):
        session._receive(ours)
    ours.close()
    theirs.close()


def test_user_namespace(box: Box, calls: Callable[..., list[str]], agent: Agent) -> None:  # noqa: F811
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    os.chown(box.rootfs, 100000, 100000)
    box.linux["seccomp"] = notified(agent, "getsid")
    agent.answers[int(GETSID)] = 5
    assert calls(GETSID) == ["5"]


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS"])
def test_who_is_killed(box: Box, calls: Callable[..., list[str]], action: str) -> None:  # noqa: F811
    """seccomp(2): the thread alone, or all of its process."""
    box.linux["seccomp"] = seccomp(rule("getsid", action))
    if action == "SCMP_ACT_KILL_PROCESS":
        assert calls("thread", GETSID, status=128 + signal.SIGSYS) == []
    else:
        assert calls("thread", GETSID) == ["the others live"]


def test_one_filter_is_all_that_there_is(box: Box, agent: Agent) -> None:  # noqa: F811
    box.linux["seccomp"] = notified(agent, "getsid")
    box.start("exec sleep 100")
    until(lambda: agent.told)
    assert "Seccomp_filters:\t1\n" in Path(f"/proc/{box.state()['pid']}/status").read_text()


def test_a_filter_that_forbids_even_the_end(box: Box) -> None:
    """Neither the failure of execve nor an exit status can be told: the process ends, and does not run for ever."""
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO"}
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    assert done.returncode == 128 + (signal.SIGILL if platform.machine() == "x86_64" else signal.SIGTRAP)
    box.gone()
