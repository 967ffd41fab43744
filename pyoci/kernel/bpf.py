"""Constants of bpf(2) that a device filter is made of, under the kernel's own names (linux/bpf.h, linux/bpf_common.h).

The instruction encoding and the context of BPF_PROG_TYPE_CGROUP_DEVICE are the same on every architecture (host byte
order; both of ours are little-endian).
"""

from __future__ import annotations

# bpf(2) commands, and what they are given
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
# sizeof(union bpf_attr) in Linux 6.x; all of it is always given: BPF_PROG_QUERY of 6.17 to 7.1 writes at offset 56
# whatever size it was told
BPF_ATTR_SIZE = 144

# instruction classes, sizes, sources, operations
BPF_LDX = 0x01
BPF_ALU = 0x04
BPF_JMP = 0x05
BPF_JMP32 = 0x06
BPF_ALU64 = 0x07
BPF_W = 0x00
BPF_MEM = 0x60
BPF_K = 0x00
BPF_AND = 0x50
BPF_RSH = 0x70
BPF_MOV = 0xB0
BPF_JA = 0x00
BPF_JEQ = 0x10
BPF_JSET = 0x40
BPF_JNE = 0x50
BPF_EXIT = 0x90

# struct bpf_cgroup_dev_ctx: access_type is (BPF_DEVCG_ACC_* << 16) | BPF_DEVCG_DEV_*
DEVICE_ACCESS_TYPE = 0
DEVICE_MAJOR = 4
DEVICE_MINOR = 8
BPF_DEVCG_DEV_BLOCK = 1
BPF_DEVCG_DEV_CHAR = 2
BPF_DEVCG_ACC_MKNOD = 1
BPF_DEVCG_ACC_READ = 2
BPF_DEVCG_ACC_WRITE = 4
