"""Docker, and containerd with its own client and as the kubelet uses it, where systemd makes the cgroups.

In the virtual machine: unmodified engines, each asked for containers with limits, which are looked for in systemd's
units, in the kernel's files, and where they bite.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from containers import BUSYBOX, needed, until
from machine import all_gone, install, loaded, show

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
pytestmark = [
    *needed,
    pytest.mark.skipif(not Path("/run/systemd/private").exists(), reason="systemd is not process 1 here"),
    pytest.mark.skipif(not V2, reason="the files that are read are cgroup v2's"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed"),
]
FOLDER = Path("/var/tmp/pyoci-engines")
IMAGE = "localhost/bb:latest"
MB = 1 << 20
PROGRAMS = ("cat", "echo", "head", "mknod", "sh", "sleep", "true")
# what it kills first, when both are near the limit: not the container's first process
EAT = "echo 1000 >/proc/self/oom_score_adj; x=x; while :; do x=$x$x; done"
FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 9 & done; echo all"
# one device that every engine allows, one that none does
DEVICES = "rm -f /f /k; mknod /f c 1 7; mknod /k c 1 11; head -c1 /f >/dev/null && echo full; head -c1 /k"


def ask(*words: str, status: int = 0, timeout: float = 120) -> str:
    """What a command prints, on both streams."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    done = subprocess.run(
        words, stdin=null, stdout=pipe, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )
    assert done.returncode == status, done
    return done.stdout.strip()


def told(unit: str, *names: str) -> list[str]:
    """Properties of a unit, in the order asked for."""
    found = show(unit, *names)
    return [found[name] for name in names]


def file(unit: str, name: str) -> str:
    """A file of a unit's cgroup."""
    where = show(unit, "ControlGroup")["ControlGroup"]
    assert where
    return Path(f"/sys/fs/cgroup{where}", name).read_text().strip()


def archive(tar: Path, to: Path) -> None:
    """An image as containerd imports it (image-spec: image-layout.md), of one layer."""
    with tarfile.open(to, "w") as out:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))

        def blob(kind: str, data: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            add(f"blobs/sha256/{digest}", data)
            return {
                "mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)
            }  # fmt: skip

        layer = blob("layer.v1.tar", tar.read_bytes())
        configuration = {
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        }  # fmt: skip
        config = blob("config.v1+json", json.dumps(configuration).encode())
        manifest = blob(
            "manifest.v1+json",
            json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "config": config, "layers": [layer]}).encode(),
        )  # fmt: skip
        manifest["annotations"] = {"io.containerd.image.name": IMAGE}
        add("index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode())
        add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture(scope="module")
def pyoci() -> Iterator[str]:
    """The program under test; in FOLDER is an image for each engine."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "rootfs/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, FOLDER / "rootfs/bin/busybox")
    for name in (*PROGRAMS, "rm"):
        (FOLDER / "rootfs/bin" / name).symlink_to("busybox")
    ask("tar", "-C", str(FOLDER / "rootfs"), "-cf", str(FOLDER / "image.tar"), ".")
    archive(FOLDER / "image.tar", FOLDER / "archive.tar")
    yield str(install())
    shutil.rmtree(FOLDER)


def daemon(*words: str, ready: Sequence[str]) -> subprocess.Popen[bytes]:
    with (FOLDER / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    null = subprocess.DEVNULL
    until(lambda: subprocess.run(ready, stdin=null, stdout=null, stderr=null, check=False).returncode == 0, words[0])
    return process


@pytest.fixture(scope="module")
def docker(pyoci: str) -> Iterator[list[str]]:
    """The words of its client.  Nothing is said of cgroups: systemd's driver is what it chooses here."""
    if shutil.which("dockerd") is None:
        pytest.skip("Docker is not installed")
    settings = {
        "runtimes": {"pyoci": {"path": pyoci}},
        "default-runtime": "pyoci",
        "storage-driver": "overlay2",
        **{name: f"{FOLDER}/docker/{name}" for name in ("data-root", "exec-root", "pidfile")},
        "hosts": [f"unix://{FOLDER}/docker.sock"],
        "iptables": False,
        "ip6tables": False,
        "bridge": "none",
    }
    (FOLDER / "docker").mkdir()
    (FOLDER / "daemon.json").write_text(json.dumps(settings))
    client = ["docker", "-H", f"unix://{FOLDER}/docker.sock"]
    process = daemon("dockerd", "--config-file", f"{FOLDER}/daemon.json", ready=[*client, "version"])
    ask(*client, "import", f"{FOLDER}/image.tar", "bb")
    yield client
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def bites(exec: Sequence[str], unit: str) -> None:
    """Limits of 32 MiB and 20 processes, and of devices, in what `exec` executes words in."""
    words = [*exec, "sh", "-c"]
    assert ask(*exec, "echo", "inside") == "inside"
    said = ask(*words, DEVICES, status=1)
    assert "full" in said and "not permitted" in said
    ask(*words, EAT, status=137)
    assert "oom_kill 1" in file(unit, "memory.events").splitlines()
    assert "can't fork" in ask(*words, FORKS, status=2)
    assert file(unit, "pids.events") != "max 0"


def test_docker(docker: list[str]) -> None:
    about = ask(*docker, "info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}} {{.DefaultRuntime}}")
    assert about == "systemd 2 pyoci"
    run = [*docker, "run", "--network=none"]
    limits = ("--memory=32m", "--memory-swap=32m", "--cpus=0.5", "--pids-limit=20", "--cpuset-cpus=0")
    id = ask(*run, "--detach", *limits, "--cgroup-parent=pyoci-test.slice", "bb", "sleep", "1000")
    unit = f"docker-{id}.scope"
    names = ("MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax", "AllowedCPUs")
    assert told(unit, *names) == [str(32 * MB), "0", "500ms", "20", "0"]
    assert told(unit, "ControlGroup") == [f"/pyoci.slice/pyoci-test.slice/{unit}"]
    files = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "cpuset.cpus.effective")
    assert [file(unit, name) for name in files] == [str(32 * MB), "0", "50000 100000", "20", "0"]
    bites([*docker, "exec", id], unit)
    assert "/ 32MiB" in ask(*docker, "stats", "--no-stream", "--format", "{{.MemUsage}}", id)
    ask(*docker, "update", "--memory=48m", "--memory-swap=48m", "--cpus=0.25", "--pids-limit=30", id)
    ask("systemctl", "daemon-reload")
    assert told(unit, *names[:4]) == [str(48 * MB), "0", "250ms", "30"]
    assert [file(unit, name) for name in files[:4]] == [str(48 * MB), "0", "25000 100000", "30"]
    assert "not permitted" in ask(*docker, "exec", id, "sh", "-c", DEVICES, status=1)
    ask(*docker, "pause", id)
    assert "frozen 1" in file(unit, "cgroup.events").splitlines()
    ask(*docker, "unpause", id)
    ask(*docker, "restart", "--time=0", id)
    assert ask(*docker, "exec", id, "cat", "/sys/fs/cgroup/pids.max") == "30"
    ask(*docker, "rm", "--force", id)
    all_gone("docker-*.scope")


def test_docker_starts_again_what_ran_out_of_memory(docker: list[str]) -> None:
    """The same unit at once: systemd has just had it fail."""
    run = [*docker, "run", "--network=none", "--memory=20m", "--memory-swap=20m"]
    ask(*run, "--name=eater", "bb", "sh", "-c", EAT, status=137)
    # that it was for its memory the shim does not always see: the file that says so goes with the scope
    ask(*docker, "start", "--attach", "eater", status=137)
    ask(*docker, "rm", "eater")
    assert "executable file not found" in ask(*run, "--rm", "bb", "nonexistent", status=127)
    all_gone("docker-*.scope")


CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/bb:latest"
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "{folder}/net"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
SNIPPET = Path(__file__).parents[1] / "contrib" / "containerd" / "pyoci.toml"


@pytest.fixture(scope="module")
def containerd(pyoci: str) -> Iterator[Path]:
    """Its directory; the socket is c.sock."""
    folder = FOLDER / "containerd"
    folder.mkdir()
    snippet = SNIPPET.read_text().replace("/usr/local/bin/pyoci", pyoci)
    assert "SystemdCgroup = false" in snippet
    snippet = snippet.replace("SystemdCgroup = false", "SystemdCgroup = true")
    (folder / "config.toml").write_text(CONTAINERD.format(folder=folder) + snippet)
    ctr = ["ctr", "-a", f"{folder}/c.sock"]
    process = daemon("containerd", "--config", f"{folder}/config.toml", ready=[*ctr, "version"])
    for space in ("default", "k8s.io"):
        ask(*ctr, "-n", space, "images", "import", f"{FOLDER}/archive.tar")
    yield folder
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def test_ctr(containerd: Path, pyoci: str) -> None:
    ctr = ["ctr", "-a", f"{containerd}/c.sock"]
    options = ("--runc-binary", pyoci, "--runc-systemd-cgroup", "--cgroup", "pyoci-test.slice:ctr:c1")
    unit = "ctr-c1.scope"
    for _ in range(2):  # the second has the name of the first at once
        ask(*ctr, "run", "--detach", *options, "--memory-limit", str(32 * MB), IMAGE, "c1", "sleep", "1000")
        assert told(unit, "MemoryMax", "Slice") == [str(32 * MB), "pyoci-test.slice"]
        assert file(unit, "memory.max") == str(32 * MB)
        exec = [*ctr, "task", "exec", "--exec-id", "e", "c1"]
        assert ask(*exec, "echo", "inside") == "inside"
        ask(*exec, "sh", "-c", EAT, status=137)
        assert "memory" in ask(*ctr, "task", "metrics", "c1")
        ask(*ctr, "task", "kill", "--signal", "KILL", "c1")
        until(lambda: "STOPPED" in ask(*ctr, "task", "ls"), "it ends")
        ask(*ctr, "task", "delete", "c1")
        ask(*ctr, "container", "rm", "c1")
        until(lambda: not loaded(unit), "the unit goes")
    all_gone(unit)


def test_cri(containerd: Path) -> None:
    """A pod as the kubelet asks for it, with crictl."""
    found = shutil.which("crictl", path=os.environ.get("TOOLS", os.defpath))
    if found is None:
        pytest.skip("crictl is not there: Go builds it (conformance/engines)")
    endpoint = f"unix://{containerd}/c.sock"
    settings = {"runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": 60}
    (containerd / "crictl.yaml").write_text(json.dumps(settings))
    crictl = [found, "--config", f"{containerd}/crictl.yaml"]
    resources = {"memory_limit_in_bytes": 32 * MB, "cpu_quota": 50000, "cpu_period": 100000}
    network = {"namespace_options": {"network": 2}}  # the node's
    pod = {
        "metadata": {"name": "pod", "namespace": "default", "uid": "u1", "attempt": 1},
        "linux": {"cgroup_parent": "pyoci-pod.slice", "security_context": network},
    }
    container = {
        "metadata": {"name": "one"},
        "image": {"image": IMAGE},
        "command": ["sleep", "1000"],
        "linux": {"resources": resources, "security_context": network},
    }
    eater = {**container, "metadata": {"name": "eater"}, "command": ["sh", "-c", EAT]}
    for name, document in {"pod": pod, "container": container, "eater": eater}.items():
        (containerd / f"{name}.json").write_text(json.dumps(document))
    documents = str(containerd)
    sandbox = ask(*crictl, "runp", "--runtime", "pyoci", f"{documents}/pod.json")
    assert told(f"cri-containerd-{sandbox}.scope", "Slice", "ActiveState") == ["pyoci-pod.slice", "active"]

    def start(name: str) -> str:
        id = ask(*crictl, "create", sandbox, f"{documents}/{name}.json", f"{documents}/pod.json")
        ask(*crictl, "start", id)
        return id

    id = start("container")
    unit = f"cri-containerd-{id}.scope"
    assert told(unit, "MemoryMax", "CPUQuotaPerSecUSec") == [str(32 * MB), "500ms"]
    assert [file(unit, name) for name in ("memory.max", "cpu.max")] == [str(32 * MB), "50000 100000"]
    assert ask(*crictl, "exec", "-s", id, "echo", "inside") == "inside"
    assert "usageCoreNanoSeconds" in ask(*crictl, "stats", "-o", "json", "--id", id)
    ask(*crictl, "update", "--memory", str(48 * MB), "--cpu-quota", "20000", id)
    ask("systemctl", "daemon-reload")
    assert told(unit, "MemoryMax", "CPUQuotaPerSecUSec") == [str(48 * MB), "200ms"]
    assert [file(unit, name) for name in ("memory.max", "cpu.max")] == [str(48 * MB), "20000 100000"]
    hungry = start("eater")
    form = ("-o", "go-template", "--template", "{{.status.state}} {{.status.exitCode}}")
    until(lambda: "CONTAINER_EXITED 137" in ask(*crictl, "inspect", *form, hungry), "it is killed for its memory")
    ask(*crictl, "stop", "--timeout", "0", id)
    ask(*crictl, "rm", id, hungry)
    ask(*crictl, "stopp", sandbox)
    ask(*crictl, "rmp", sandbox)
    all_gone("cri-containerd-*.scope")
