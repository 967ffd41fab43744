"""What a container may do and be: no more than its configuration says, by whatever way."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
import sys

import pytest
from canary import COMMAND, Bundle, bundle  # noqa: F401 - bundle is a fixture
from containers import needed, until

from pyoci.container.restored import check
from pyoci.errors import PyociError
from pyoci.spec.load import load
from pyoci.state import Store

pytestmark = needed
RIGHTS = "cat /proc/self/status"
NONE = "0000000000000000"


def rights(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.parametrize("how", ["run", "exec", "exec-cap", "hook"])
def test_rights_are_those_of_the_configuration(bundle: Bundle, how: str) -> None:
    """CVE-2022-29162: nothing inheritable, nothing ambient; and a hook out of the image is no way to more."""
    kill = f"{1 << 5:016x}"
    if how == "hook":
        bundle.config["hooks"] = {
            "startContainer": [
                {"path": "/bin/sh", "args": ["sh", "-c", RIGHTS + " >/tmp/rights"], "env": ["PATH=/bin"]}
            ]
        }
        for command in ("run", "create"):
            bundle.process["args"] = ["/bin/cat", "/tmp/rights"]
            bundle.write()
            name = bundle.name()
            done = bundle.call(command, name)
            assert done.returncode == 0, done.stderr
            if command == "create":
                done = bundle.call("start", name)
                assert (done.returncode, done.stderr) == (0, "")
            seen = rights((bundle.rootfs / "tmp" / "rights").read_text())
            assert (seen["CapBnd"], seen["CapPrm"], seen["NoNewPrivs"]) == (kill, kill, "1")
        return
    if how == "run":
        seen = rights(bundle.run("/bin/cat", "/proc/self/status").stdout)
    else:
        extra = ["--cap", "CAP_SYS_ADMIN"] if how == "exec-cap" else []
        seen = rights(bundle.call("exec", *extra, bundle.start(), "/bin/cat", "/proc/self/status").stdout)
        kill = f"{1 << 5 | (1 << 21 if extra else 0):016x}"
    assert (seen["CapInh"], seen["CapAmb"], seen["CapBnd"], seen["CapPrm"]) == (NONE, NONE, kill, kill)
    assert (seen["NoNewPrivs"], seen["SigIgn"], seen["SigBlk"], seen["Groups"]) == ("1", NONE, NONE, "")


def test_numeric_users(bundle: Bundle) -> None:
    """CVE-2016-3697, CVE-2026-30892: a number is that number, whatever the image's passwd calls it."""
    (bundle.rootfs / "etc" / "passwd").write_text("1000:x:0:0::/:/bin/sh\n1:x:0:0::/:/bin/sh\n")
    name = bundle.start()
    for text, uid, gid in (("1000", "1000", "0"), ("1:2", "1", "2"), ("0", "0", "0")):
        done = bundle.call("exec", "--user", text, name, "/bin/sh", "-c", "id -u; id -g")
        assert done.stdout.split() == [uid, gid]
    for text in (
        "1:",
        ":2",
        "-1",
        "4294967295",
        "4294967296",
        "01",
        "1 ",
        " 1",
        "a",
        "1:a",
        "root",
        "0x0",
        "1:-1",
        "+0",
    ):
        assert bundle.call("exec", f"--user={text}", name, "/bin/true").returncode, text


KEYRING = r"""
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
    char text[200] = "none";
    syscall(SYS_keyctl, 6, -3, text, sizeof text); /* KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING */
    puts(text);
    return 0;
}
"""


JOIN = (
    "import ctypes, os, sys; ctypes.CDLL(None).syscall(int(sys.argv[1]), 1, sys.argv[2].encode(), 0, 0, 0); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
# In a session keyring of this name, open to everybody, as nobody: says so, and waits for the end of its input.
SQUAT = (
    "import ctypes, os, sys; os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); "
    "call = ctypes.CDLL(None).syscall; "
    "ring = call(int(sys.argv[1]), 1, sys.argv[2].encode(), 0, 0, 0); "
    "bad = call(int(sys.argv[1]), 5, ring, 0x3f3f3f3f, 0, 0); "
    "os.write(1, b'%d %d\\n' % (ring > 0, bad)); os.read(0, 1)"
)


@pytest.fixture
def keyctl(bundle: Bundle) -> str:
    """The number of keyctl(2), and /bin/keyring in the image to describe the session keyring."""
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, -3, 0, 0, 0) < 0 and ctypes.get_errno() == errno.ENOSYS:
        pytest.skip("this kernel has no keyrings")
    bundle.compile("keyring", KEYRING)
    return str(number)


def joined(bundle: Bundle, keyctl: str, *command: str) -> str:
    """What a command of pyoci prints, whose caller is in the session keyring "canary"."""
    words = [sys.executable, "-I", "-c", JOIN, keyctl, "canary", *COMMAND, "--root", str(bundle.states), *command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=bundle.folder, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_session_keyring_stays_outside(bundle: Bundle, keyctl: str) -> None:
    """What the caller keeps in its session keyring is not the container's, by create or by exec (keyrings(7))."""
    name = bundle.start()
    bundle.process["args"] = ["/bin/keyring"]
    bundle.write()
    for command in (["exec", name, "/bin/keyring"], ["run", bundle.name()]):
        text = joined(bundle, keyctl, *command)
        assert text.startswith("keyring;0;") and "canary" not in text
    assert joined(bundle, keyctl, "run", "--no-new-keyring", bundle.name()).strip().endswith(";canary")


def test_session_keyring_of_somebody_else(bundle: Bundle, keyctl: str) -> None:
    """A user who knows the container's id can make a keyring of any name first, and let everybody join it."""
    bundle.process["args"] = ["/bin/keyring"]
    bundle.write()
    name = bundle.name()
    words = [sys.executable, "-I", "-c", SQUAT, keyctl, f"_ses.{name}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "1 0\n"
        text = joined(bundle, keyctl, "run", name)
        squatter.communicate("")
    assert text.startswith("keyring;0;"), "of root, and not of nobody"


# -- threads of a restored process

THREADS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static const char *what;
static void *other(void *unused)
{
    if (!strcmp(what, "namespace"))
        if (unshare(CLONE_FS) || setns(open("/tmp/net", O_RDONLY), CLONE_NEWNET))
            perror("setns");
    close(open("/tmp/ready", O_CREAT | O_WRONLY, 0600));
    for (;;)
        pause();
}
int main(int argc, char **argv)
{
    unsigned int head[2] = {0x20080522, 0}, data[6] = {0x20, 0x20, 0, 0, 0, 0};
    pthread_t thread;
    what = argv[1];
    pthread_create(&thread, 0, other, 0);
    while (access("/tmp/ready", F_OK))
        usleep(1000);
    if (!strcmp(what, "no_new_privs"))
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!strcmp(what, "capabilities"))
        prctl(PR_CAPBSET_DROP, 21, 0, 0, 0), prctl(PR_CAPBSET_DROP, 8, 0, 0, 0), syscall(SYS_capset, head, data);
    close(open("/tmp/done", O_CREAT | O_WRONLY, 0600));
    for (;;)
        pause();
}
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("", ""),
        ("no_new_privs", "/process/noNewPrivileges: processes that may get new privileges"),
        ("capabilities", "/process/capabilities: CAP_SETPCAP, CAP_SYS_ADMIN"),
        ("namespace", "/linux/namespaces: the host's network namespace"),
    ],
)
@pytest.mark.parametrize("by_path", [False, True], ids=["", "by path"])
def test_restored_thread_with_more_than_its_process(bundle: Bundle, what: str, said: str, by_path: bool) -> None:
    """Images are a program's, thread by thread: each has its own rights, and /proc/PID is the first one's."""
    bundle.compile("threads", THREADS)
    bundle.process["noNewPrivileges"] = what != "no_new_privs"
    more = ["CAP_SYS_ADMIN", "CAP_SETPCAP"] if what in ("capabilities", "namespace") else []
    sets = ("bounding", "permitted", "effective")
    bundle.process["capabilities"] = {kind: ["CAP_KILL", *more] for kind in sets}
    bundle.config["linux"].pop("maskedPaths")
    if what == "namespace":
        (bundle.rootfs / "tmp/net").touch()
        bind = {"destination": "/tmp/net", "source": "/proc/self/ns/net", "options": ["bind"]}
        bundle.config["mounts"].append(bind)
    name = bundle.start("threads", what)
    until((bundle.rootfs / "tmp/done").exists)
    with Store.open(str(bundle.states), name) as store:
        state = store.load()
    # as config.json of restore may have it
    allowed = ["CAP_KILL", *(more if what == "namespace" else [])]
    bundle.process["capabilities"] = dict.fromkeys(sets, allowed)
    bundle.process["noNewPrivileges"] = True
    if by_path:
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = f"/proc/{state.pid}/ns/net"
    spec = load(json.dumps(bundle.config).encode())
    if said:
        with pytest.raises(PyociError, match=re.escape(said)):
            check(spec, state, os.getpid(), "")
    else:
        check(spec, state, os.getpid(), "")
