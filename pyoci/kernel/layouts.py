"""Layouts of the structures that ops pass by address: name -> (size, {field: (offset, width)}), in bytes.

They are the same on x86_64 and aarch64 (both little-endian, LP64); tests/test_uapi.py compiles them against the
kernel's headers.
"""

from __future__ import annotations

LAYOUTS: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "open_how": (24, {"flags": (0, 8), "mode": (8, 8), "resolve": (16, 8)}),
    "mount_attr": (32, {"attr_set": (0, 8), "attr_clr": (8, 8), "propagation": (16, 8), "userns_fd": (24, 8)}),
    "clone_args": (
        88,
        {
            "flags": (0, 8),
            "pidfd": (8, 8),
            "child_tid": (16, 8),
            "parent_tid": (24, 8),
            "exit_signal": (32, 8),
            "cgroup": (80, 8),
        },
    ),
    "sock_fprog": (16, {"len": (0, 2), "filter": (8, 8)}),
    "cap_header": (8, {"version": (0, 4), "pid": (4, 4)}),
    "cap_data": (
        24,
        {
            "effective_low": (0, 4),
            "permitted_low": (4, 4),
            "inheritable_low": (8, 4),
            "effective_high": (12, 4),
            "permitted_high": (16, 4),
            "inheritable_high": (20, 4),
        },
    ),
    "rlimit64": (16, {"rlim_cur": (0, 8), "rlim_max": (8, 8)}),
    "sched_attr": (
        56,
        {
            "size": (0, 4),
            "sched_policy": (4, 4),
            "sched_flags": (8, 8),
            "sched_nice": (16, 4),
            "sched_priority": (20, 4),
            "sched_runtime": (24, 8),
            "sched_deadline": (32, 8),
            "sched_period": (40, 8),
        },
    ),
    "iovec": (16, {"iov_base": (0, 8), "iov_len": (8, 8)}),
    "msghdr": (
        56,
        {"msg_iov": (16, 8), "msg_iovlen": (24, 8), "msg_control": (32, 8), "msg_controllen": (40, 8)},
    ),
    # one control message that carries one file descriptor: CMSG_SPACE(sizeof(int))
    "cmsg_fd": (24, {"cmsg_len": (0, 8), "cmsg_level": (8, 4), "cmsg_type": (12, 4), "fd": (16, 4)}),
    "winsize": (8, {"ws_row": (0, 2), "ws_col": (2, 2)}),
    # ifr_name holds up to 8 characters here: enough for "lo"
    "ifreq": (40, {"ifr_name": (0, 8), "ifr_flags": (16, 2)}),
    # union bpf_attr: the kernel may write at any of its offsets, so the whole of it is given, whatever the command
    # needs
    "bpf_prog_load": (
        144,
        {"prog_type": (0, 4), "insn_cnt": (4, 4), "insns": (8, 8), "license": (16, 8)},
    ),
    "bpf_prog_attach": (
        144,
        {"target_fd": (0, 4), "attach_bpf_fd": (4, 4), "attach_type": (8, 4), "attach_flags": (12, 4)},
    ),
    "bpf_prog_query": (
        144,
        {"target_fd": (0, 4), "attach_type": (4, 4), "prog_ids": (16, 8), "prog_cnt": (24, 4)},
    ),
    "bpf_prog_get_fd_by_id": (144, {"prog_id": (0, 4)}),
    # the kernel's, not the C library's; its handler is the first word on both architectures
    "sigaction": (32, {"sa_handler": (0, 8), "sa_flags": (8, 8)}),
    "int": (4, {"value": (0, 4)}),
}
