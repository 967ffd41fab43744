"""Every number and offset in `pyoci.kernel` is the kernel's: compiled against its headers, for each architecture.

Nothing is run: the compiler checks static assertions, so a cross compiler is as good as a native one.  A name that the
installed headers do not have is an error too, unless `NEWER` says since when it exists.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pyoci.kernel import errnos, flags, scheduling, seccomp, syscalls
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.layouts import LAYOUTS

COMPILERS = {
    "x86_64": ("x86_64-linux-gnu-gcc", "gcc"),
    "aarch64": ("aarch64-linux-gnu-gcc", "gcc"),
}

# Two units: the kernel's own headers and the C library's do not go together.
HEADERS = {
    "kernel": (
        "asm/errno.h", "asm/fcntl.h", "asm/ioctls.h", "asm/signal.h", "asm/socket.h", "asm/termios.h", "asm/unistd.h",
        "linux/bpf.h", "linux/capability.h", "linux/close_range.h", "linux/fcntl.h", "linux/filter.h", "linux/keyctl.h",
        "linux/magic.h", "linux/mount.h", "linux/nsfs.h", "linux/openat2.h", "linux/prctl.h", "linux/resource.h",
        "linux/ioprio.h", "linux/mempolicy.h", "linux/personality.h", "linux/sched.h", "linux/sched/types.h",
        "linux/seccomp.h", "linux/securebits.h", "linux/sockios.h", "linux/stat.h", "linux/uio.h",
        "linux/wait.h",
    ),
    "libc": (
        "fcntl.h", "limits.h", "poll.h", "signal.h", "sys/epoll.h", "sys/mount.h", "sys/socket.h", "sys/uio.h",
        "sys/wait.h", "unistd.h", "linux/if.h",
    ),
}  # fmt: skip

# Names that the headers define as enumerators: #ifdef cannot see them.
ENUMERATORS = {
    "kernel": {
        "FSCONFIG_SET_FLAG", "FSCONFIG_SET_STRING", "FSCONFIG_SET_BINARY", "FSCONFIG_SET_PATH",
        "FSCONFIG_SET_PATH_EMPTY", "FSCONFIG_SET_FD", "FSCONFIG_CMD_CREATE", "FSCONFIG_CMD_RECONFIGURE",
        "BPF_PROG_LOAD", "BPF_PROG_ATTACH", "BPF_PROG_DETACH", "BPF_PROG_QUERY", "BPF_PROG_GET_FD_BY_ID",
        "BPF_PROG_TYPE_CGROUP_DEVICE", "BPF_CGROUP_DEVICE",
        "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE", "IOPRIO_WHO_PROCESS", "PER_LINUX", "PER_LINUX32",
        "MPOL_DEFAULT", "MPOL_PREFERRED", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED_MANY",
    },
    "libc": {"SOCK_DGRAM", "SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_CLOEXEC", "SCM_RIGHTS"},
}  # fmt: skip
# Names newer than the headers of Debian 12 (Linux 6.1): value, and the release that has it.
NEWER: dict[str, tuple[int, str]] = {
    "MPOL_WEIGHTED_INTERLEAVE": (6, "6.9"),
    "SCHED_ISO": (4, "reserved by the kernel"),
    "FSCONFIG_CMD_CREATE_EXCL": (8, "6.6"),
    "MFD_EXEC": (0x10, "6.3"),
}
# What Python cannot spell, or what the kernel calls otherwise.
ALIASES = {
    "LINUX_CAPABILITY_VERSION_3": "_LINUX_CAPABILITY_VERSION_3",
}

# layout -> C type, and the C member for each field whose name differs
TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "cap_header": ("struct __user_cap_header_struct", {}),
    "cap_data": (
        "cap_data",
        {
            f"{name}_{half}": f"set[{index}].{name}"
            for index, half in enumerate(("low", "high"))
            for name in ("effective", "permitted", "inheritable")
        },
    ),
    "cmsg_fd": (
        "cmsg_fd",
        {"cmsg_len": "head.cmsg_len", "cmsg_level": "head.cmsg_level", "cmsg_type": "head.cmsg_type"},
    ),
    "ifreq": ("struct ifreq", {}),
    "bpf_prog_load": ("union bpf_attr", {}),
    "bpf_prog_attach": ("union bpf_attr", {}),
    "bpf_prog_query": (
        "union bpf_attr",
        {name: f"query.{name}" for name in ("target_fd", "attach_type", "prog_ids", "prog_cnt")},
    ),
    "bpf_prog_get_fd_by_id": ("union bpf_attr", {}),
    "int": ("one_int", {}),
}
PARTIAL = {"ifreq": {"ifr_name"}}  # fields of which only the first bytes are given
LIBC_TYPES = {"msghdr", "cmsg_fd", "ifreq"}
PRELUDE = {
    "kernel": """
typedef struct { struct __user_cap_data_struct set[2]; } cap_data;
typedef struct { int value; } one_int;
""",
    "libc": """
typedef struct { struct cmsghdr head; int fd; int padding; } cmsg_fd;
_Static_assert(sizeof(cmsg_fd) == CMSG_SPACE(sizeof(int)), "CMSG_SPACE");
""",
}


def compiler(arch: str) -> str:
    """A C compiler that makes code for `arch`, or a skip that says which is missing."""
    for name in COMPILERS[arch]:
        if (name != "gcc" or platform.machine() == arch) and (found := shutil.which(name)):
            return found
    pytest.skip(f"no C compiler for {arch}: install {COMPILERS[arch][0]}")


@pytest.fixture(params=sorted(COMPILERS))
def arch(request: pytest.FixtureRequest) -> str:
    compiler(request.param)
    return str(request.param)


def constants(arch: str) -> dict[str, int]:
    """C name -> value on `arch` of every constant in `pyoci.kernel`."""
    found = {name: value for name, value in vars(flags).items() if name.isupper() and isinstance(value, int)}
    for name, value in found.items():
        if name.startswith("O_"):
            found[name] = flags.open_flags(arch, value)
    found.update(flags.RLIMITS)
    found.update(CAPABILITIES)
    found.update({name: number for number, (name, _) in errnos.ERRNOS.items()})
    found.update((name, value) for name, value in vars(seccomp).items() if name.startswith("SECCOMP_FILTER_FLAG_"))
    found.update(("SECCOMP_RET_" + name.removeprefix("SCMP_ACT_"), value) for name, value in seccomp.ACTIONS.items())
    found["SECCOMP_RET_USER_NOTIF"] = found.pop("SECCOMP_RET_NOTIFY")
    for table in (
        scheduling.POLICIES,
        scheduling.SCHED_FLAGS,
        scheduling.IOPRIO_CLASSES,
        scheduling.MEMORY_MODES,
        scheduling.MEMORY_FLAGS,
    ):
        found.update(table)
    # policies have the names of the specification: the kernel's first is SCHED_NORMAL
    found["SCHED_NORMAL"] = found.pop("SCHED_OTHER")
    found.update(("PER_" + name, value) for name, value in scheduling.PERSONALITIES.items())
    found["IOPRIO_CLASS_SHIFT"] = scheduling.IOPRIO_CLASS_SHIFT
    found["IOPRIO_WHO_PROCESS"] = scheduling.IOPRIO_WHO_PROCESS
    found["SCHED_ATTR_SIZE_VER1"] = scheduling.SCHED_ATTR_SIZE
    found["BPF_MAXINSNS"] = seccomp.BPF_MAXINSNS
    found.update(("__NR_" + name, number) for name, number in syscalls.numbers(arch).items())
    return {ALIASES.get(name, name): value for name, value in found.items()}


def source(unit: str) -> str:
    lines = ["#define _GNU_SOURCE 1", "#include <stddef.h>", *(f"#include <{name}>" for name in HEADERS[unit])]
    return "\n".join(lines) + PRELUDE[unit]


def defined(arch: str, unit: str, names: set[str]) -> set[str]:
    """Those of `names` that the headers of `unit` define as macros."""
    ordered = sorted(names)
    # by position: a name in the text would be expanded
    text = source(unit) + "".join(f"#ifdef {name}\n@{place}\n#endif\n" for place, name in enumerate(ordered))
    output = subprocess.run(
        [compiler(arch), "-E", "-P", "-x", "c", "-"], input=text, capture_output=True, text=True, check=True
    ).stdout
    return {ordered[int(line[1:])] for line in output.splitlines() if line.startswith("@")}


def check(arch: str, text: str, directory: Path) -> None:
    path = directory / "uapi.c"
    path.write_text(text)
    done = subprocess.run(
        [compiler(arch), "-std=c11", "-c", "-o", str(directory / "uapi.o"), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [line.split("error: ", 1)[1] for line in done.stderr.splitlines() if "error: " in line]
    assert not wrong
    assert done.returncode == 0, done.stderr


def test_constants(arch: str, tmp_path: Path) -> None:
    values = constants(arch)
    unknown = set(values)
    for unit in ("kernel", "libc"):
        # the C library is asked only for what the kernel's headers do not have: it changes some (O_LARGEFILE is 0)
        here = (defined(arch, unit, unknown) | ENUMERATORS[unit]) & unknown
        unknown -= here
        assertions = "".join(
            f'_Static_assert((unsigned long long)({name}) == {values[name] & (1 << 64) - 1}ull, "{name}");\n'
            if not -(1 << 31) <= values[name] < 0
            else f'_Static_assert(({name}) == {values[name]}, "{name}");\n'
            for name in sorted(here)
        )
        check(arch, source(unit) + assertions, tmp_path)
    assert unknown <= set(NEWER), "in no header"
    assert {name: values[name] for name in unknown} == {name: NEWER[name][0] for name in unknown}


def test_layouts(arch: str, tmp_path: Path) -> None:
    for unit in ("kernel", "libc"):
        assertions = []
        for layout, (size, fields) in LAYOUTS.items():
            if (layout in LIBC_TYPES) != (unit == "libc"):
                continue
            kind, members = TYPES.get(layout, (f"struct {layout}", {}))
            # what grows with every release may be given shorter, but never shorter than its fields
            relation = "<=" if kind == "union bpf_attr" else "=="
            assertions.append(f'_Static_assert({size} {relation} sizeof({kind}), "sizeof {layout}");')
            for field, (offset, width) in fields.items():
                member = members.get(field, field)
                relation = "<=" if field in PARTIAL.get(layout, ()) else "=="
                assertions.append(
                    f'_Static_assert(offsetof({kind}, {member}) == {offset}, "{layout}.{field}");'
                    f'_Static_assert({width} {relation} sizeof((({kind} *)0)->{member}), "width of {layout}.{field}");'
                )
                assert offset + width <= size
        check(arch, source(unit) + "\n".join(assertions) + "\n", tmp_path)


def test_a_wrong_number_is_noticed(arch: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="wrong"):
        check(arch, source("kernel") + '_Static_assert(__NR_read == 12345, "wrong");\n', tmp_path)


def test_every_architecture_has_the_same_calls() -> None:
    first, *others = (syscalls.numbers(arch) for arch in syscalls.ARCHITECTURES)
    assert all(set(first) == set(other) for other in others)
    assert tuple(COMPILERS) == syscalls.ARCHITECTURES
    with pytest.raises(KeyError):
        syscalls.numbers("vax")


def test_libseccomp_numbers(tmp_path: Path) -> None:
    """The names of config.json are those of libseccomp's header; so are the numbers."""
    cc = shutil.which("gcc")
    if cc is None:
        pytest.skip("no C compiler: install gcc")
    include = "#include <linux/filter.h>\n#include <linux/seccomp.h>\n#include <seccomp.h>\n#include <stddef.h>\n"
    found = subprocess.run([cc, "-E", "-x", "c", "-"], input=include, text=True, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("no seccomp.h: install libseccomp-dev")
    values = {f"{name}({0})" if name in seccomp.ERRNO_MAX else name: value for name, value in seccomp.ACTIONS.items()}
    values.update(seccomp.OPERATORS)
    for name in ("SCMP_FLTATR_CTL_OPTIMIZE", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32"):
        values[name] = getattr(seccomp, name)
    values["BPF_LD|BPF_W|BPF_ABS"] = seccomp.BPF_LD_W_ABS
    values["BPF_ALU|BPF_AND|BPF_K"] = seccomp.BPF_ALU_AND_K
    values["BPF_JMP|BPF_JA"] = seccomp.BPF_JA
    for name in ("JEQ", "JGT", "JGE", "JSET"):
        values[f"BPF_JMP|BPF_{name}|BPF_K"] = getattr(seccomp, f"BPF_{name}_K")
    values["BPF_RET|BPF_K"] = seccomp.BPF_RET_K
    values["offsetof(struct seccomp_data, nr)"] = seccomp.DATA_NR
    values["offsetof(struct seccomp_data, arch)"] = seccomp.DATA_ARCH
    if platform.machine() == "x86_64":
        values["__X32_SYSCALL_BIT"] = seccomp.X32_SYSCALL_BIT
    text = include + '_Static_assert(__NR_SCMP_ERROR == -1, "error");\n'
    text += "".join(f'_Static_assert((unsigned)({name}) == {value}u, "{name}");\n' for name, value in values.items())
    check(platform.machine(), text, tmp_path)


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (2, "ENOENT", "no such file or directory"),
        (13, "EACCES", "permission denied"),
        (8, "ENOEXEC", "exec format error"),
        (21, "EISDIR", "is a directory"),
        (20, "ENOTDIR", "not a directory"),
        (40, "ELOOP", "too many levels of symbolic links"),
        (95, "EOPNOTSUPP", "operation not supported"),
        (4000, "4000", "errno 4000"),
    ],
)
def test_errno_words(number: int, name: str, words: str) -> None:
    """Engines compare these words, lower case, to choose between exit statuses 126 and 127."""
    assert (errnos.name(number), errnos.words(number)) == (name, words)


def test_capability_mask() -> None:
    from pyoci.kernel.capabilities import mask

    assert sorted(CAPABILITIES.values()) == list(range(41))
    assert mask(("CAP_CHOWN", "CAP_CHECKPOINT_RESTORE")) == 1 | 1 << 40
    with pytest.raises(KeyError):
        mask(("CAP_NOTHING",))
