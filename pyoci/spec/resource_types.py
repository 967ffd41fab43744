"""/linux/resources as values, and what all values of config.json share; `types` has the others and passes these on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Json = dict[str, object]


class Value:
    """Equality and printing by content."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__slots__)})"


class DeviceRule(Value):
    """config-linux.md#allowed-device-list: `type` a, b or c (absent is a); None numbers are any; `access` of "rwm"."""

    __slots__ = ("access", "allow", "major", "minor", "type")

    def __init__(
        self,
        allow: bool = False,
        type: str = "a",
        major: int | None = None,
        minor: int | None = None,
        access: str = "rwm",
    ) -> None:
        self.allow = allow
        self.type = type
        self.major = major
        self.minor = minor
        self.access = access


class Memory(Value):
    """config-linux.md#memory: bytes, -1 unlimited; None is absent."""

    __slots__ = (
        "check_before_update", "disable_oom_killer", "kernel", "kernel_tcp", "limit", "reservation", "swap",
        "swappiness", "use_hierarchy",
    )  # fmt: skip

    def __init__(
        self,
        limit: int | None = None,
        reservation: int | None = None,
        swap: int | None = None,
        kernel: int | None = None,
        kernel_tcp: int | None = None,
        swappiness: int | None = None,
        disable_oom_killer: bool | None = None,
        use_hierarchy: bool | None = None,
        check_before_update: bool | None = None,
    ) -> None:
        self.limit = limit
        self.reservation = reservation
        self.swap = swap
        self.kernel = kernel
        self.kernel_tcp = kernel_tcp
        self.swappiness = swappiness
        self.disable_oom_killer = disable_oom_killer
        self.use_hierarchy = use_hierarchy
        self.check_before_update = check_before_update


class Cpu(Value):
    """config-linux.md#cpu: microseconds; `cpus` and `mems` are lists such as "0-3,7"; None is absent."""

    __slots__ = (
        "burst", "cpus", "idle", "mems", "period", "quota", "realtime_period", "realtime_runtime", "shares",
    )  # fmt: skip

    def __init__(
        self,
        shares: int | None = None,
        quota: int | None = None,
        burst: int | None = None,
        period: int | None = None,
        realtime_runtime: int | None = None,
        realtime_period: int | None = None,
        cpus: str | None = None,
        mems: str | None = None,
        idle: int | None = None,
    ) -> None:
        self.shares = shares
        self.quota = quota
        self.burst = burst
        self.period = period
        self.realtime_runtime = realtime_runtime
        self.realtime_period = realtime_period
        self.cpus = cpus
        self.mems = mems
        self.idle = idle


class Pids(Value):
    """config-linux.md#pids: `limit` -1 is max, 0 is a limit of none."""

    __slots__ = ("limit",)

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit


class WeightDevice(Value):
    """config-linux.md#block-io: one `weightDevice` entry; at least one weight is present."""

    __slots__ = ("leaf_weight", "major", "minor", "weight")

    def __init__(
        self, major: int = 0, minor: int = 0, weight: int | None = None, leaf_weight: int | None = None
    ) -> None:
        self.major = major
        self.minor = minor
        self.weight = weight
        self.leaf_weight = leaf_weight


class ThrottleDevice(Value):
    """config-linux.md#block-io: one `throttle*Device` entry; `rate` in bytes or operations per second."""

    __slots__ = ("major", "minor", "rate")

    def __init__(self, major: int = 0, minor: int = 0, rate: int = 0) -> None:
        self.major = major
        self.minor = minor
        self.rate = rate


class BlockIO(Value):
    """config-linux.md#block-io."""

    __slots__ = (
        "leaf_weight", "throttle_read_bps_device", "throttle_read_iops_device", "throttle_write_bps_device",
        "throttle_write_iops_device", "weight", "weight_device",
    )  # fmt: skip

    def __init__(
        self,
        weight: int | None = None,
        leaf_weight: int | None = None,
        weight_device: tuple[WeightDevice, ...] = (),
        throttle_read_bps_device: tuple[ThrottleDevice, ...] = (),
        throttle_write_bps_device: tuple[ThrottleDevice, ...] = (),
        throttle_read_iops_device: tuple[ThrottleDevice, ...] = (),
        throttle_write_iops_device: tuple[ThrottleDevice, ...] = (),
    ) -> None:
        self.weight = weight
        self.leaf_weight = leaf_weight
        self.weight_device = weight_device
        self.throttle_read_bps_device = throttle_read_bps_device
        self.throttle_write_bps_device = throttle_write_bps_device
        self.throttle_read_iops_device = throttle_read_iops_device
        self.throttle_write_iops_device = throttle_write_iops_device


class HugepageLimit(Value):
    """config-linux.md#huge-page-limits: `page_size` such as "2MB"; `limit` in bytes."""

    __slots__ = ("limit", "page_size")

    def __init__(self, page_size: str = "", limit: int = 0) -> None:
        self.page_size = page_size
        self.limit = limit


class Resources(Value):
    """config-linux.md#control-groups; `network` and `rdma` are the JSON objects, their shape checked."""

    __slots__ = (
        "block_io", "cpu", "devices", "hugepage_limits", "memory", "network", "pids", "rdma", "unified",
    )  # fmt: skip

    def __init__(
        self,
        devices: tuple[DeviceRule, ...] = (),
        memory: Memory | None = None,
        cpu: Cpu | None = None,
        pids: Pids | None = None,
        block_io: BlockIO | None = None,
        hugepage_limits: tuple[HugepageLimit, ...] = (),
        network: Json | None = None,
        rdma: Json | None = None,
        unified: dict[str, str] | None = None,
    ) -> None:
        self.devices = devices
        self.memory = memory
        self.cpu = cpu
        self.pids = pids
        self.block_io = block_io
        self.hugepage_limits = hugepage_limits
        self.network = network
        self.rdma = rdma
        self.unified: dict[str, str] = {} if unified is None else unified
