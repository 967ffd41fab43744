"""Hostile processes of a container: they go for whoever enters it, and for what that one holds."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from canary import Bundle, bundle  # noqa: F401 - bundle is a fixture
from containers import needed, until

pytestmark = needed

SNOOPER = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void look(const char *pid, const char *name, dev_t mine)
{
    char path[512], target[512] = "";
    struct stat info;
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return;
    readlink(path, target, sizeof target - 1);
    if (!fstat(fd, &info) && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) && info.st_dev != mine)
        printf("reached %s of %s: %s\n", name, pid, target), fflush(stdout);
    close(fd);
}
int main(void)
{
    struct stat own;
    long seen = 0, last = 0;
    stat("/bin/busybox", &own);
    puts("ready"), fflush(stdout);
    while (access("/tmp/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            long pid = atol(entry->d_name);
            if (pid <= 1 || pid == getpid())
                continue;
            if (pid != last)
                seen++, last = pid;
            look(entry->d_name, "exe", own.st_dev);
            look(entry->d_name, "root", own.st_dev);
            look(entry->d_name, "cwd", own.st_dev);
            char name[16], exe[600], target[512];
            for (int n = 3; n < 16; n++)
                snprintf(name, sizeof name, "fd/%d", n), look(entry->d_name, name, own.st_dev);
            if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) {
                snprintf(exe, sizeof exe, "/proc/%ld/exe", pid);
                long got = readlink(exe, target, sizeof target - 1);
                target[got < 0 ? 0 : got] = 0;
                if (strstr(target, "memfd"))
                    printf("traced %ld: %s\n", pid, target), fflush(stdout);
                ptrace(PTRACE_INTERRUPT, pid, 0, 0), waitpid(pid, 0, 0), ptrace(PTRACE_DETACH, pid, 0, 0);
            }
        }
        closedir(proc);
    }
    printf("saw %ld\n", seen);
    return 0;
}
"""


@pytest.mark.parametrize("user", [0, 1000])
def test_snooper_reaches_nothing_of_exec(bundle: Bundle, user: int) -> None:
    """CVE-2016-9962, CVE-2019-5736: while execs come in, a process of the container goes for all that they hold."""
    bundle.compile("snooper", SNOOPER)
    (bundle.rootfs / "tmp").chmod(0o777)
    bundle.process["user"] = {"uid": user, "gid": user}
    name = bundle.start("/bin/sh", "-c", "snooper >/tmp/found; sleep 100")
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    for number in range(50):
        done = bundle.call("exec", *(["--user", "1000"] if number % 2 else []), name, "/bin/true")
        assert (done.returncode, done.stderr) == (0, "")
    (bundle.rootfs / "tmp" / "stop").touch()
    until(lambda: "saw" in found.read_text())
    lines = found.read_text().splitlines()
    assert lines[0] == "ready" and lines[-1].startswith("saw") and lines[1:-1] == []


TRACER = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    unsigned long allowed = strtoul(argv[1], 0, 16);
    long took = 0, last = 0;
    puts("ready"), fflush(stdout);
    while (access("/tmp/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            long pid = atol(entry->d_name);
            char path[64], text[4096], *line;
            if (pid <= 1 || pid == getpid() || pid == last || ptrace(PTRACE_SEIZE, pid, 0, 0))
                continue;
            last = pid;
            ptrace(PTRACE_INTERRUPT, pid, 0, 0);
            waitpid(pid, 0, __WALL);
            snprintf(path, sizeof path, "/proc/%ld/exe", pid);
            long got = readlink(path, text, sizeof text - 1);
            text[got < 0 ? 0 : got] = 0;
            if (strstr(text, "memfd:pyoci-init")) {
                snprintf(path, sizeof path, "/proc/%ld/status", pid);
                int fd = open(path, O_RDONLY);
                got = read(fd, text, sizeof text - 1);
                text[got < 0 ? 0 : got] = 0;
                close(fd);
                took++;
                for (line = strstr(text, "CapInh"); line && line < strstr(text, "NoNew"); line = strchr(line, '\n') + 1)
                    if (strtoul(line + 8, 0, 16) & ~allowed)
                        printf("gained %.24s\n", line), fflush(stdout);
                line = strstr(text, "Uid:");
                if (argc > 2 && atol(line + 5) != atol(argv[2]))
                    printf("gained %.20s\n", line), fflush(stdout);
            }
            ptrace(PTRACE_DETACH, pid, 0, 0);
        }
        closedir(proc);
        if (took > 2)
            break;
    }
    printf("took %ld\n", took);
    return 0;
}
"""


def saw_and_gained_nothing(bundle: Bundle, found: Path) -> None:
    """End the tracer whose findings are in `found`: it has traced somebody, and had nothing to tell of anybody."""
    (bundle.rootfs / "tmp" / "stop").touch()
    until(lambda: "took" in found.read_text())
    lines = found.read_text().splitlines()
    assert lines[-1] != "took 0", "none was seen"
    assert (lines[0], lines[1:-1]) == ("ready", [])


@pytest.mark.parametrize("filtered", ["", "Docker's", "no_new_privs"])
@pytest.mark.parametrize("terminal", [False, True], ids=["", "terminal"])
def test_tracer_gains_nothing_of_exec(bundle: Bundle, filtered: str, terminal: bool) -> None:
    """CAP_SYS_PTRACE without a user namespace: whoever enters can be traced, and must have no more than its tracer."""
    bundle.compile("tracer", TRACER)
    (bundle.rootfs / "tmp").chmod(0o777)
    held = ["CAP_SYS_PTRACE", "CAP_KILL"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    bundle.process["noNewPrivileges"] = filtered == "no_new_privs"
    if filtered:
        # clone3 cannot be looked into, so Docker's has ENOSYS for it, and no new namespaces by clone
        bundle.config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}],
                },
            ],
        }
    name = bundle.start("/bin/sh", "-c", "tracer 80020 1000 >/tmp/found; sleep 100")
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    script = """
        test $(grep -c NoNewPrivs:.1 /proc/self/status) = $1 && id -u && grep -c Seccomp:.2 /proc/self/status
        test ! -t 0 || echo seen >/dev/tty
    """
    bundle.process["args"] = ["/bin/sh", "-c", script, "-", str(int(filtered == "no_new_privs"))]
    bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    bundle.process["terminal"] = terminal
    bundle.process["oomScoreAdj"] = 100
    bundle.process["cwd"] = "/tmp"
    asked = bundle.folder / "process.json"
    asked.write_text(json.dumps(bundle.process))
    for _ in range(200):
        done = bundle.call("exec", "--process", str(asked), name)
        assert done.stdout.split() == ["1000", str(int(bool(filtered))), *(["seen"] if terminal else [])], done
        if "took" in found.read_text():
            break
    saw_and_gained_nothing(bundle, found)


def test_tracer_of_another_container(bundle: Bundle) -> None:
    """Two containers with one pid namespace, as in a pod: exec is in the one, and the other may trace."""
    bundle.compile("tracer", TRACER)
    (bundle.rootfs / "tmp").chmod(0o777)
    sets = ("bounding", "effective", "permitted")
    bundle.process["capabilities"] = {kind: ["CAP_SYS_PTRACE", "CAP_KILL"] for kind in sets}
    script = "while [ ! -e /tmp/go ]; do sleep 1; done; tracer 80020 >/tmp/found; sleep 100"
    first = bundle.start("/bin/sh", "-c", script)
    pid = json.loads(bundle.call("state", first).stdout)["pid"]
    bundle.process["capabilities"] = {kind: ["CAP_KILL"] for kind in sets}
    for entry in bundle.config["linux"]["namespaces"]:
        if entry["type"] == "pid":
            entry["path"] = f"/proc/{pid}/ns/pid"
    second = bundle.start()
    (bundle.rootfs / "tmp" / "go").touch()
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    for _ in range(200):
        done = bundle.call("exec", second, "/bin/grep", "CapPrm", "/proc/self/status")
        assert done.stdout.split() == ["CapPrm:", "0000000000000020"], done
        if "took" in found.read_text():
            break
    saw_and_gained_nothing(bundle, found)


@pytest.mark.parametrize("filtered", [True, False])
def test_tracer_as_hook(bundle: Bundle, filtered: bool) -> None:
    """A startContainer hook is the image's program, and runs beside the first process that still has CAP_SYS_ADMIN."""
    (bundle.rootfs / "tmp").chmod(0o777)
    bundle.process["noNewPrivileges"] = False
    held = ["CAP_KILL", "CAP_SYS_PTRACE"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    if filtered:
        bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    look = "grep -E 'CapPrm|CapBnd' /proc/1/status /proc/self/status >/tmp/found"
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", look], "env": ["PATH=/bin"]}]}
    assert bundle.run("/bin/true").returncode == 0
    found = [line.split()[1] for line in (bundle.rootfs / "tmp" / "found").read_text().splitlines()]
    assert found == (["0000000000280020", "0000000000080020"] if filtered else ["0000000000080020"] * 2) + (
        ["0000000000000020"] * 2 if filtered else ["0000000000080020"] * 2
    )


@pytest.mark.parametrize("change", ["", "noNewPrivileges", "capability", "filter"])
def test_tracer_before_start(bundle: Bundle, change: str) -> None:
    """The first process keeps CAP_SYS_ADMIN until it may load its filter: nobody who may trace it is let in before."""
    bundle.process["noNewPrivileges"] = change == "noNewPrivileges"
    held = ["CAP_KILL" if change == "capability" else "CAP_SYS_PTRACE"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    if change != "filter":
        bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.process["args"] = ["/bin/sleep", "100"]
    bundle.write()
    name = bundle.name()
    assert bundle.call("create", name).returncode == 0
    done = bundle.call("exec", name, "/bin/grep", "CapPrm", "/proc/1/status")
    if change:
        assert done.returncode == 0, done
    else:
        assert (done.returncode, done.stdout) == (255, "") and "cannot exec in a created container" in done.stderr, done
        assert bundle.call("start", name).returncode == 0
        done = bundle.call("exec", name, "/bin/grep", "CapPrm", "/proc/1/status")
        assert done.stdout.split() == ["CapPrm:", "0000000000080000"], done
