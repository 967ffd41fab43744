"""The tables of `linux` in config.json: config-linux.md's properties, their types and attributes."""

from __future__ import annotations

from pyoci.jsontext import escape
from pyoci.spec import types as t
from pyoci.spec.read import (
    INT64,
    UINT16,
    UINT32,
    UINT64,
    WRONG,
    Report,
    Shape,
    flag,
    integer,
    object_map,
    objects,
    text,
    text_map,
    text_or_none,
    texts,
)

_int64 = integer(INT64)
_uint16 = integer(UINT16)
_uint32 = integer(UINT32)
_uint64 = integer(UINT64)


def _device_numbers(made: object, value: dict[str, object], where: str, report: Report) -> None:
    """config-linux.md#devices: numbers are required unless the type is p; file types in the mode say nothing new."""
    if isinstance(made, t.Device):
        if made.type != "p":
            for name in ("major", "minor"):
                if not any(other.lower() == name and item is not None for other, item in value.items()):
                    report.add(f"{where}/{name}", "is required, and missing")
        # Engines pass st_mode with its S_IFMT bits.
        if made.file_mode is not None and made.file_mode <= 0o177777:
            made.file_mode &= 0o7777


def _any_number(made: object, value: dict[str, object], where: str, report: Report) -> None:
    """config-linux.md#allowed-device-list: absent numbers are any; engines write -1 for it."""
    if isinstance(made, t.DeviceRule):
        if made.major == -1:
            made.major = None
        if made.minor == -1:
            made.minor = None


def _keep_seccomp(made: object, value: dict[str, object], where: str, report: Report) -> None:
    if isinstance(made, t.Seccomp):
        made.raw = value


class _Offset(t.Value):
    """One entry of timeOffsets, on its way to the pair that `Linux.time_offsets` holds."""

    __slots__ = ("nanosecs", "secs")

    def __init__(self) -> None:
        self.secs = 0
        self.nanosecs = 0


_OFFSET = Shape(
    _Offset, "config-linux.md#offset-for-time-namespace", {"secs": ("secs", _int64), "nanosecs": ("nanosecs", _uint32)}
)


def _offsets(value: object, where: str, report: Report) -> object:
    if type(value) is not dict:
        report.add(where, "must be an object of clocks")
        return WRONG
    made: dict[str, tuple[int, int]] = {}
    for clock, item in value.items():
        if item is not None:
            offset = _OFFSET(item, f"{where}/{escape(clock)}", report)
            if isinstance(offset, _Offset):
                made[clock] = offset.secs, offset.nanosecs
    return made


ID_MAPPINGS = objects(
    Shape(
        t.IdMapping,
        "config-linux.md#user-namespace-mappings",
        {"containerID": ("container_id", _uint32), "hostID": ("host_id", _uint32), "size": ("size", _uint32)},
        ("containerID", "hostID", "size"),
    )
)

_DEVICES = objects(
    Shape(
        t.Device,
        "config-linux.md#devices",
        {
            "path": ("path", text),
            "type": ("type", text),
            "major": ("major", _int64),
            "minor": ("minor", _int64),
            "fileMode": ("file_mode", _uint32),
            "uid": ("uid", _uint32),
            "gid": ("gid", _uint32),
        },
        ("path", "type"),
        _device_numbers,
    )
)

_MEMORY = Shape(
    t.Memory,
    "config-linux.md#memory",
    {
        "limit": ("limit", _int64),
        "reservation": ("reservation", _int64),
        "swap": ("swap", _int64),
        "kernel": ("kernel", _int64),
        "kernelTCP": ("kernel_tcp", _int64),
        "swappiness": ("swappiness", _uint64),
        "disableOOMKiller": ("disable_oom_killer", flag),
        "useHierarchy": ("use_hierarchy", flag),
        "checkBeforeUpdate": ("check_before_update", flag),
    },
)

_CPU = Shape(
    t.Cpu,
    "config-linux.md#cpu",
    {
        "shares": ("shares", _uint64),
        "quota": ("quota", _int64),
        "burst": ("burst", _uint64),
        "period": ("period", _uint64),
        "realtimeRuntime": ("realtime_runtime", _int64),
        "realtimePeriod": ("realtime_period", _uint64),
        "cpus": ("cpus", text_or_none),
        "mems": ("mems", text_or_none),
        "idle": ("idle", _int64),
    },
)

_THROTTLE = objects(
    Shape(
        t.ThrottleDevice,
        "config-linux.md#block-io",
        {"major": ("major", _int64), "minor": ("minor", _int64), "rate": ("rate", _uint64)},
        ("major", "minor", "rate"),
    )
)

_BLOCK_IO = Shape(
    t.BlockIO,
    "config-linux.md#block-io",
    {
        "weight": ("weight", _uint16),
        "leafWeight": ("leaf_weight", _uint16),
        "weightDevice": (
            "weight_device",
            objects(
                Shape(
                    t.WeightDevice,
                    "config-linux.md#block-io",
                    {
                        "major": ("major", _int64),
                        "minor": ("minor", _int64),
                        "weight": ("weight", _uint16),
                        "leafWeight": ("leaf_weight", _uint16),
                    },
                    ("major", "minor"),
                )
            ),
        ),
        "throttleReadBpsDevice": ("throttle_read_bps_device", _THROTTLE),
        "throttleWriteBpsDevice": ("throttle_write_bps_device", _THROTTLE),
        "throttleReadIOPSDevice": ("throttle_read_iops_device", _THROTTLE),
        "throttleWriteIOPSDevice": ("throttle_write_iops_device", _THROTTLE),
    },
)

RESOURCES = Shape(
    t.Resources,
    "config-linux.md#control-groups",
    {
        "devices": (
            "devices",
            objects(
                Shape(
                    t.DeviceRule,
                    "config-linux.md#allowed-device-list",
                    {
                        "allow": ("allow", flag),
                        "type": ("type", text),
                        "major": ("major", _int64),
                        "minor": ("minor", _int64),
                        "access": ("access", text),
                    },
                    ("allow",),
                    _any_number,
                )
            ),
        ),
        "memory": ("memory", _MEMORY),
        "cpu": ("cpu", _CPU),
        "pids": ("pids", Shape(t.Pids, "config-linux.md#pids", {"limit": ("limit", _int64)})),
        "blockIO": ("block_io", _BLOCK_IO),
        "hugepageLimits": (
            "hugepage_limits",
            objects(
                Shape(
                    t.HugepageLimit,
                    "config-linux.md#huge-page-limits",
                    {"pageSize": ("page_size", text), "limit": ("limit", _uint64)},
                    ("pageSize", "limit"),
                )
            ),
        ),
        "network": (
            "network",
            Shape(
                None,
                "config-linux.md#network",
                {
                    "classID": ("class_id", _uint32),
                    "priorities": (
                        "priorities",
                        objects(
                            Shape(
                                None,
                                "config-linux.md#network",
                                {"name": ("name", text), "priority": ("priority", _uint32)},
                                ("name", "priority"),
                            )
                        ),
                    ),
                },
            ),
        ),
        "rdma": (
            "rdma",
            object_map(
                Shape(
                    None,
                    "config-linux.md#rdma",
                    {"hcaHandles": ("hca_handles", _uint32), "hcaObjects": ("hca_objects", _uint32)},
                )
            ),
        ),
        "unified": ("unified", text_map),
    },
)

SECCOMP = Shape(
    t.Seccomp,
    "config-linux.md#seccomp",
    {
        "defaultAction": ("default_action", text),
        "defaultErrnoRet": ("default_errno_ret", _uint32),
        "architectures": ("architectures", texts),
        "flags": ("flags", texts),
        "listenerPath": ("listener_path", text),
        "listenerMetadata": ("listener_metadata", text),
        "syscalls": (
            "syscalls",
            objects(
                Shape(
                    t.SyscallRule,
                    "config-linux.md#seccomp",
                    {
                        "names": ("names", texts),
                        "action": ("action", text),
                        "errnoRet": ("errno_ret", _uint32),
                        "args": (
                            "args",
                            objects(
                                Shape(
                                    t.SyscallArg,
                                    "config-linux.md#seccomp",
                                    {
                                        "index": ("index", _uint32),
                                        "value": ("value", _uint64),
                                        "valueTwo": ("value_two", _uint64),
                                        "op": ("op", text),
                                    },
                                    ("index", "value", "op"),
                                )
                            ),
                        ),
                    },
                    ("names", "action"),
                )
            ),
        ),
    },
    ("defaultAction",),
    _keep_seccomp,
)

LINUX = Shape(
    t.Linux,
    "config-linux.md",
    {
        "namespaces": (
            "namespaces",
            objects(
                Shape(
                    t.Namespace,
                    "config-linux.md#namespaces",
                    {"type": ("type", text), "path": ("path", text_or_none)},
                    ("type",),
                )
            ),
        ),
        "uidMappings": ("uid_mappings", ID_MAPPINGS),
        "gidMappings": ("gid_mappings", ID_MAPPINGS),
        "timeOffsets": ("time_offsets", _offsets),
        "devices": ("devices", _DEVICES),
        "cgroupsPath": ("cgroups_path", text_or_none),
        "resources": ("resources", RESOURCES),
        "sysctl": ("sysctl", text_map),
        "seccomp": ("seccomp", SECCOMP),
        "rootfsPropagation": ("rootfs_propagation", text),
        "maskedPaths": ("masked_paths", texts),
        "readonlyPaths": ("readonly_paths", texts),
        "mountLabel": ("mount_label", text),
        "personality": (
            "personality",
            Shape(
                None,
                "config-linux.md#personality",
                {"domain": ("domain", text), "flags": ("flags", texts)},
                ("domain",),
            ),
        ),
        "memoryPolicy": (
            "memory_policy",
            Shape(
                None,
                "config-linux.md#memory-policy",
                {"mode": ("mode", text), "nodes": ("nodes", text), "flags": ("flags", texts)},
                ("mode",),
            ),
        ),
        "intelRdt": (
            "intel_rdt",
            Shape(
                None,
                "config-linux.md#intelrdt",
                {
                    "closID": ("clos_id", text),
                    "l3CacheSchema": ("l3_cache_schema", text),
                    "memBwSchema": ("mem_bw_schema", text),
                    "schemata": ("schemata", texts),
                    "enableMonitoring": ("enable_monitoring", flag),
                },
            ),
        ),
        "netDevices": (
            "net_devices",
            object_map(Shape(None, "config-linux.md#network-devices", {"name": ("name", text)})),
        ),
    },
)
