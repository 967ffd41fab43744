"""What the program finds: user, privileges, limits, directory, environment, filter; read from inside."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed  # noqa: F401 - box is a fixture

pytestmark = needed
CHOWN, KILL, NET_BIND, SYS_ADMIN, AUDIT = 1 << 0, 1 << 5, 1 << 10, 1 << 21, 1 << 29
NAMES = {"CAP_CHOWN": CHOWN, "CAP_KILL": KILL, "CAP_NET_BIND_SERVICE": NET_BIND, "CAP_AUDIT_WRITE": AUDIT}


def status(box: Box) -> dict[str, str]:
    """/proc/self/status of a program in the container."""
    box.process["args"] = ["cat", "/proc/self/status"]
    lines = box.run().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def sets(box: Box) -> dict[str, int]:
    """The capability sets of a program in the container."""
    return {name[3:]: int(value, 16) for name, value in status(box).items() if name.startswith("Cap")}


def test_user_and_groups(box: Box) -> None:
    box.process["user"] = {"uid": 11, "gid": 22, "additionalGids": [33, 44], "umask": 0o027}
    found = status(box)
    assert found["Uid"].split() == ["11"] * 4
    assert found["Gid"].split() == ["22"] * 4
    assert found["Groups"].split() == ["33", "44"]
    assert found["Umask"] == "0027"


KEEP_GROUPS = "run.oci.keep_original_groups"


def test_groups_that_are_kept(box: Box) -> None:
    """podman's --group-add keep-groups; without the annotation they are taken away."""
    command = ("grep", "Groups:", "/proc/self/status")
    box.process["user"] = {"uid": 5, "gid": 6, "additionalGids": [7]}
    for value, groups in (("1", ["4242", "4343"]), ("0", ["7"])):
        box.config["annotations"] = {KEEP_GROUPS: value}
        box.process["args"] = [*command]
        box.write()
        done = box("run", "--bundle", str(box.bundle), box.id, extra_groups=[4242, 4343])
        assert (done.returncode, done.stdout.split()[1:]) == (0, groups), done
        box.start()
        assert box.ok("exec", box.id, *command, extra_groups=[4242, 4343]).split()[1:] == groups
        box.ok("delete", "--force", box.id)
    box.config["annotations"] = {KEEP_GROUPS: "perhaps"}
    assert f"/annotations/{KEEP_GROUPS}: must be 0 or 1" in box.refused()


def test_root_has_no_groups_of_ours(box: Box) -> None:
    found = status(box)
    assert (found["Groups"], found["Umask"], found["Uid"].split()[0]) == ("", "0022", "0")


@pytest.mark.parametrize("mask", [0, 0o077])
def test_umask_that_nobody_asks_for_is_that_of_peers(box: Box, mask: int) -> None:
    """The caller's would be the specification's; it is 0 for some engines, and runc and crun have 022."""
    box.process["args"] = ["grep", "Umask", "/proc/self/status"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id, umask=mask)
    assert done.stdout.split() == ["Umask:", "0022"]


def test_capabilities_of_root(box: Box) -> None:
    box.capabilities(*NAMES)
    every = sum(NAMES.values())
    assert sets(box) == {"Inh": 0, "Prm": every, "Eff": every, "Bnd": every, "Amb": 0}


def test_no_capabilities(box: Box) -> None:
    box.process.pop("capabilities")
    assert set(sets(box).values()) == {0}


def test_ambient_capabilities_that_nobody_may_have(box: Box, tmp_path: Path) -> None:
    box.capabilities("CAP_KILL", "CAP_CHOWN", inheritable=["CAP_KILL"], ambient=["CAP_KILL", "CAP_CHOWN"])
    box.process["args"] = ["grep", "CapAmb", "/proc/self/status"]
    box.write()
    log = tmp_path / "log"
    done = box("--log", str(log), "run", "--bundle", str(box.bundle), box.id)
    assert (done.returncode, int(done.stdout.split()[1], 16), done.stderr) == (0, 1 << 5, "")
    assert "/process/capabilities/ambient: left out" in log.read_text() and "CAP_CHOWN" in log.read_text()
    assert "CAP_KILL" not in log.read_text()
    # runc's default configuration asks for such ones: stderr is the container's
    assert box("run", "--bundle", str(box.bundle), box.id).stderr == ""


@pytest.mark.parametrize(("kind", "reason"), [("inheritable", "not bounding"), ("effective", "not permitted")])
def test_capabilities_that_another_set_has_not(box: Box, tmp_path: Path, kind: str, reason: str) -> None:
    """config.md#linux-process: what cannot be granted is logged as a warning, and create SHOULD NOT fail."""
    box.process["capabilities"] = {"bounding": [], "permitted": []} | {kind: ["CAP_KILL"]}
    box.process["args"] = ["grep", "^Cap", "/proc/self/status"]
    box.write()
    log = tmp_path / "log"
    done = box("--log", str(log), "run", "--bundle", str(box.bundle), box.id)
    assert (done.returncode, done.stderr) == (0, "")
    assert {int(line.split()[1], 16) for line in done.stdout.splitlines()} == {0}
    assert f"/process/capabilities/{kind}: left out, because they are {reason}: CAP_KILL" in log.read_text()


def test_ambient_capabilities_of_a_user(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    names = ["CAP_KILL", "CAP_CHOWN"]
    box.capabilities(*names, inheritable=names, ambient=["CAP_KILL"])
    assert sets(box) == {"Inh": KILL | CHOWN, "Prm": KILL, "Eff": KILL, "Bnd": KILL | CHOWN, "Amb": KILL}
    box.capabilities(*names)
    assert sets(box) == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": KILL | CHOWN, "Amb": 0}


def test_unknown_capability_is_a_warning(box: Box) -> None:
    box.capabilities("CAP_KILL", "CAP_NO_SUCH")
    box.process["args"] = ["grep", "CapBnd", "/proc/self/status"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    if done.returncode == 0:
        assert int(done.stdout.split()[1], 16) == KILL
    assert "CAP_NO_SUCH" in done.stderr


@pytest.mark.parametrize("wanted", [False, True])
def test_no_new_privileges(box: Box, wanted: bool) -> None:
    box.process["noNewPrivileges"] = wanted
    assert status(box)["NoNewPrivs"] == str(int(wanted))


def test_limits(box: Box) -> None:
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_AS", "soft": 1 << 30, "hard": 2**64 - 1},
    ]
    lines = box.run("cat /proc/self/limits").splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert found["Max open files"] == ["100", "200"]
    assert found["Max core file size"] == ["0", "4096"]
    assert found["Max address space"] == [str(1 << 30), "unlimited"]


def test_oom_score(box: Box) -> None:
    box.process["oomScoreAdj"] = 321
    assert box.run("cat /proc/self/oom_score_adj") == "321\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "321\n"


def test_oom_score_that_nobody_asks_for_is_the_callers(box: Box) -> None:
    """config.md#linux-process: the runtime MUST NOT change it when it is not set."""
    box.process.pop("oomScoreAdj", None)
    box.process["args"] = ["cat", "/proc/self/oom_score_adj"]
    box.write()
    words = ["sh", "-c", 'echo 234 >/proc/self/oom_score_adj; exec "$@"', "sh"]
    done = subprocess.run(
        [*words, *box.command("run", "--bundle", str(box.bundle), box.id)],
        capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("234\n", "")


def test_lines_of_a_terminal_in_a_pipe(box: Box) -> None:
    """Output that no terminal shows has no CR, whichever command made the terminal."""
    box.process["terminal"] = True
    words = ["sh", "-c", "echo a; echo b"]
    box.process["args"] = words
    box.write()
    run = box.command("run", "--bundle", str(box.bundle), box.id)
    done = subprocess.run(run, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"a\nb\n"), done
    box.process["terminal"] = False
    box.start("exec sleep 100")
    done = subprocess.run(box.command("exec", "-t", box.id, *words), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"a\nb\n"), done


def test_console_size_without_a_terminal_is_nobodys_business(box: Box) -> None:
    box.process["consoleSize"] = {"height": 11, "width": 22}
    assert box.run("tty; echo $?") == "not a tty\n1\n"


def test_working_directory_is_made(box: Box) -> None:
    box.process["cwd"] = "/new/deep"
    assert box.run("pwd; stat -c '%a %u' /new/deep").split() == ["/new/deep", "755", "0"]


@pytest.mark.parametrize("number", range(3, 12))
def test_working_directory_is_no_descriptor_of_ours(box: Box, number: int) -> None:
    box.process["cwd"] = f"/proc/self/fd/{number}"
    assert "/process/cwd" in box.refused("pwd; ls ../../..")


def test_working_directory_that_only_its_user_may_enter(box: Box) -> None:
    (box.rootfs / "home").mkdir(mode=0o700)
    os.chown(box.rootfs / "home", 1000, 1000)
    box.process["cwd"] = "/home"
    box.process["user"] = {"uid": 1000, "gid": 1000}
    assert box.run("pwd") == "/home\n"


def test_environment(box: Box) -> None:
    box.process["env"] = ["PATH=/bin", "A=1", "B=x=y", "EMPTY=", "Ü=ü"]
    box.process["args"] = ["cat", "/proc/self/environ"]
    assert [entry for entry in box.run().split("\0") if entry][:5] == box.process["env"]


def test_search_in_path(box: Box) -> None:
    (box.rootfs / "opt").mkdir()
    (box.rootfs / "opt/ls").write_text("#!/bin/sh\necho mine $0 $1")
    (box.rootfs / "opt/cat").write_text("not executable")
    (box.rootfs / "opt/ls").chmod(0o755)
    box.process["env"] = ["PATH=/nowhere:/opt:/bin"]
    box.process["args"] = ["ls", "arg"]
    assert box.run() == "mine /opt/ls arg\n"
    box.process["args"] = ["cat", "/proc/self/comm"]
    assert box.run() == "cat\n"
    box.process["env"] = []
    assert box.run() == "cat\n"


def test_descriptors(box: Box) -> None:
    box.process["args"] = ["ls", "/proc/self/fd"]
    assert box.run().split() == ["0", "1", "2", "3"]  # the last is the directory itself


def test_session(box: Box) -> None:
    box.process["args"] = ["cat", "/proc/self/stat"]
    fields = box.run().split()
    assert fields[0] == fields[4] == fields[5] == "1"  # pid, group, session


def seccomp(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [*rules]} | more


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("user", [0, 1000])
def test_filter(box: Box, no_new_privileges: bool, user: int) -> None:
    box.process["noNewPrivileges"] = no_new_privileges
    box.process["user"] = {"uid": user, "gid": user}
    # the program must not be able to load its own filter, or anything else that CAP_SYS_ADMIN could
    rule = {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}
    box.linux["seccomp"] = seccomp(rule)
    found = status(box)
    assert found["Seccomp"] == "2"
    assert not int(found["CapPrm"], 16) & SYS_ADMIN
    assert found["NoNewPrivs"] == str(int(no_new_privileges))
    box.process["args"] = ["env", "-u", "PWD", "busybox", "pwd"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    assert done.returncode != 0 and os.strerror(errno.EXDEV) in done.stderr


def test_filter_that_kills(box: Box) -> None:
    box.linux["seccomp"] = seccomp({"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"})
    box.process["args"] = ["hostname", "x"]
    box.write()
    assert box("run", "--bundle", str(box.bundle), box.id).returncode == 128 + 31


def test_filter_is_on_exec_too(box: Box) -> None:
    box.linux["seccomp"] = seccomp({"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"})
    box.start("exec sleep 100")
    assert "Seccomp:\t2\n" in box.exec("grep", "Seccomp:", "/proc/self/status")


def test_filter_of_the_start_does_not_stop_it(box: Box) -> None:
    """An engine's list of what is allowed: execve and what the program needs, none of what made the container."""
    names = [
        "execve", "exit", "exit_group", "write", "brk", "arch_prctl", "set_tid_address", "mmap", "mprotect", "getuid",
        "rt_sigprocmask", "set_robust_list", "rseq", "prlimit64", "readlinkat", "getrandom", "setuid", "setgid",
        "getgid", "ioctl", "fstat", "newfstatat", "uname", "prctl", "readlink", "geteuid",
    ]  # fmt: skip
    box.linux["seccomp"] = seccomp({"names": names, "action": "SCMP_ACT_ALLOW"}, defaultAction="SCMP_ACT_ERRNO")
    box.process["args"] = ["echo", "fine"]
    assert box.run() == "fine\n"


def test_streams_belong_to_the_user(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    assert box.run("echo through > /dev/stdout; cat /dev/stdin", input="in\n") == "through\nin\n"


def test_runs_from_anywhere_with_any_environment(box: Box) -> None:
    box.process["args"] = ["sh", "-c", "pwd; cat /proc/self/environ | tr '\\0' '\\n' | grep -c SECRET"]
    box.write()
    done = subprocess.run(
        box.command("run", "--bundle", str(box.bundle), box.id), cwd="/proc", env={"SECRET": "1", "PYTHONHOME": "/x"},
        capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("/\n0\n", "")
