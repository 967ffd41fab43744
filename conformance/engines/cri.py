"""containerd's CRI plugin, as the kubelet uses it, driven by crictl: pods of a runtime handler."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

from checks import Check
from engine import UNITS, Engine

VERSION = "v1.34.0"
MODULE = "sigs.k8s.io/cri-tools"
SNIPPET = Path(__file__).parents[2] / "contrib" / "containerd" / "pyoci.toml"
PLUGINS = "/usr/lib/cni"
LOOP = "trap 'exit 3' TERM; echo started; echo wrong >&2; while :; do sleep 0.1; done"
V1 = "/sys/fs/cgroup"

CONFIGURATION = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:latest"
  # the root of a test machine may not lower a score
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{folder}/net"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""

CRI: tuple[Check, ...] = (
    ("a handler that is none", "{crictl} runp --runtime nobodys {folder}/pod.json",
     r'^rc=1 .*no runtime for \\?"nobodys\\?" is configured'),
    ("a pod", "{crictl} runp --runtime {handler} {folder}/pod.json >{folder}/p", r"^rc=0\b"),
    ("of the handler", "{crictl} inspectp -o go-template"
     " --template '{{{{.status.runtimeHandler}}}} {{{{.status.network.ip}}}}' {pod}",
     r"^rc=0 {handler} 10\.88\.7\.\d+\b"),
    ("the handler's program", "{crictl} inspectp {pod}", r'^rc=0 .*"[bB]inary_?[nN]ame": ?"{runtime}"'),
    ("a container", "{crictl} create {pod} {folder}/container.json {folder}/pod.json >{folder}/c", r"^rc=0\b"),
    ("started", "{crictl} start {it}", r"^rc=0\b"),
    ("listed", "{crictl} ps --id {it}", r"^rc=0 .*Running"),
    ("the runtime knows it", "{runtime} --root /run/containerd/runc/k8s.io list -q; echo $(cat {folder}/c)",
     r"^rc=0 .*\b(\w{64}) (.* )?\1$"),
    ("exec", "{crictl} exec {it} hostname", r"^rc=0 podhost\b"),
    ("exec, waited for", "{crictl} exec -s {it} echo inside", r"^rc=0 inside\b"),
    ("exec's status", "{crictl} exec -s {it} sh -c 'exit 5'", r"^rc=1 .*exit(ed with| code) 5"),
    ("exec of nothing", "{crictl} exec -s {it} nonexistent", r"^rc=1 .*executable file not found"),
    ("exec on a terminal", "script -qec \"{crictl} exec -it {it} tty\" /dev/null", r"^rc=0 .*/dev/pts/"),
    ("its memory", "{crictl} exec {it} cat " + V1 + "/memory/memory.limit_in_bytes", r"^rc=0 67108864\b"),
    ("its processor time", "{crictl} exec {it} cat " + V1 + "/cpu/cpu.cfs_quota_us", r"^rc=0 50000\b"),
    ("its user", "{crictl} exec {it} id", r"^rc=0 uid=1000 gid=1001 groups=.*\b1002\b"),
    ("its seccomp filter", "{crictl} exec {it} grep Seccomp: /proc/self/status", r"^rc=0 Seccomp:\s*2\b"),
    ("its read-only root", "{crictl} exec {it} touch /x", r"^rc=1 .*Read-only file system"),
    ("its volume", "{crictl} exec {it} cat /v/pod.json", r"^rc=0 .*podhost"),
    ("its address", "{crictl} exec {it} ip -o -4 addr show eth0", r"^rc=0 .*10\.88\.7\."),
    ("logs", "{crictl} logs {it}", r"^rc=0 (?=.*started)(?=.*wrong)"),
    ("stats", "{crictl} stats -o json --id {it}", r'^rc=0 .*"usageCoreNanoSeconds".*"workingSetBytes"'),
    ("the pod's stats", "{crictl} statsp -o json", r'^rc=0 .*"usageCoreNanoSeconds"'),
    ("update", "{crictl} update --memory 33554432 --cpu-quota 20000 {it}", r"^rc=0\b"),
    ("updated", "{crictl} exec {it} cat " + f"{V1}/memory/memory.limit_in_bytes {V1}/cpu/cpu.cfs_quota_us",
     r"^rc=0 33554432 20000\b"),
    ("stop", "{crictl} stop -t 5 {it}", r"^rc=0\b"),
    ("stopped how", "{crictl} inspect -o go-template --template '{{{{.status.state}}}} {{{{.status.exitCode}}}}' {it}",
     r"^rc=0 CONTAINER_EXITED 3\b"),
    ("remove", "{crictl} rm {it} && {crictl} ps -a -q", r"^rc=0 \w+$"),
    ("one that eats", "{crictl} create {pod} {folder}/eater.json {folder}/pod.json >{folder}/c && {crictl} start {it}",
     r"^rc=0\b"),
    ("is killed for its memory", "until {crictl} inspect {it} | grep -q EXITED; do sleep 0.2; done;"
     " {crictl} inspect -o go-template --template '{{{{.status.exitCode}}}} {{{{.status.reason}}}}' {it}",
     r"^rc=0 137 OOMKilled"),
    ("one without a program", "{crictl} create {pod} {folder}/nothing.json {folder}/pod.json >{folder}/c"
     " && {crictl} start {it}", r"^rc=1 .*executable file not found"),
    ("a parent that is a slice", "{crictl} runp --runtime {handler} {folder}/sliced.json", r"^rc=0 \w+$"),
    ("the pod stops", "{crictl} stopp {pod}", r"^rc=0 Stopped sandbox"),
    ("and goes", "{crictl} rmp {pod} && {crictl} pods --name ^pod$ -q", r"^rc=0 Removed sandbox \w+$"),
)  # fmt: skip


def tools() -> Path | None:
    """The directory with crictl: in PATH, or built by Go once and kept; None where neither can be."""
    if found := shutil.which("crictl"):
        return Path(found).parent
    folder = Path("/var/cache/pyoci-check") / f"cri-tools-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "crictl").exists() and (go := shutil.which("go")):
            environment = {**os.environ, "GOBIN": str(folder)}
            words = [go, "install", f"{MODULE}/cmd/crictl@{VERSION}"]
            subprocess.run(words, env=environment, check=False, cwd=folder, stdin=subprocess.DEVNULL)
    return folder if (folder / "crictl").exists() else None


class Cri(Engine):
    name = "cri"
    needs = ("containerd", "ctr", "podman", "script", f"{PLUGINS}/bridge", f"{PLUGINS}/loopback")
    table = CRI

    def configure(self, handler: str, more: str = "") -> None:
        """What containerd and its network plugins are given; `more` is formatted and added to it."""
        folder = self.folder
        configuration = CONFIGURATION.format(folder=folder, plugins=PLUGINS)
        snippet = SNIPPET.read_text().replace("/usr/local/bin/pyoci", self.runtime)
        if UNITS:
            snippet = snippet.replace("SystemdCgroup = false", "SystemdCgroup = true")
        # the snippet that is shipped, appended as it says
        if handler == "runc":
            # with its path said, as the others have it
            snippet = snippet.replace(".runtimes.pyoci]", ".runtimes.unused]")
            snippet = snippet.replace(".runtimes.pyoci.options]", ".runtimes.runc.options]")
        else:
            snippet = snippet.replace(".runtimes.pyoci", f".runtimes.{handler}")
        (folder / "config.toml").write_text(configuration + snippet + more.format(folder=folder))
        (folder / "net").mkdir()
        (folder / "net" / "10.conflist").write_text(json.dumps(self.network()))

    def start(self) -> None:
        folder = self.folder
        handler = Path(self.runtime).name
        self.configure(handler)
        self.documents(handler)
        self.spawn("containerd", "--config", str(folder / "config.toml"))
        ctr = f"ctr -a {folder}/c.sock -n k8s.io"
        self.until(f"{ctr} version")
        where = " ".join(f"--{what} {folder}/{what[:2]}" for what in ("root", "runroot", "tmpdir"))
        for name, program in (("pause", '["/bin/sleep", "1000000"]'), ("bb", '["/bin/sh"]')):
            image, archive = f"localhost/{name}:latest", folder / f"{name}.tar"
            self.until(
                f"podman {where} import --change 'CMD {program}' --change 'ENV PATH=/bin' {self.image} {image} && "
                f"podman {where} save --format oci-archive -o {archive} {image} && {ctr} images import {archive}"
            )
        found = tools()
        assert found is not None
        endpoint = f"unix://{folder}/c.sock"
        settings = {"runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": 20}
        (folder / "crictl.yaml").write_text(json.dumps(settings))
        crictl = f"{found}/crictl --config {folder}/crictl.yaml"
        self.until(f"{crictl} version")
        self.words = {
            "crictl": crictl,
            "handler": handler,
            "folder": str(folder),
            "runtime": self.runtime,
            "pod": f"$(cat {folder}/p)",
            "it": f"$(cat {folder}/c)",
        }

    def network(self) -> dict[str, object]:
        ranges = [[{"subnet": "10.88.7.0/24"}]]
        ipam = {"type": "host-local", "dataDir": f"{self.folder}/ipam", "ranges": ranges}
        bridge = {"type": "bridge", "bridge": "pyoci-cri", "isGateway": True, "ipam": ipam}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]}

    def documents(self, handler: str) -> None:
        """What crictl is given: a pod, and containers of it."""
        folder = self.folder
        parent = f"pyoci-cri-{handler}.slice" if UNITS else f"/pyoci-cri-{handler}"
        pod = {
            "metadata": {"name": "pod", "namespace": "default", "uid": "u1", "attempt": 1},
            "hostname": "podhost",
            "log_directory": f"{folder}/logs",
            "linux": {"cgroup_parent": parent, "security_context": {}},
        }
        named = {"name": "sliced", "namespace": "default", "uid": "u2", "attempt": 1}
        sliced = {**pod, "metadata": named, "linux": {"cgroup_parent": "pyoci-cri.slice"}}
        resources = {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000}
        user = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1001}, "supplemental_groups": [1002]}
        security = {**user, "readonly_rootfs": True, "seccomp": {"profile_type": 0}, "no_new_privs": True}
        container = {
            "metadata": {"name": "one"},
            "image": {"image": "localhost/bb:latest"},
            "command": ["/bin/sh", "-c", LOOP],
            "log_path": "one.log",
            "mounts": [{"container_path": "/v", "host_path": str(folder / "given"), "readonly": True}],
            "linux": {"resources": resources, "security_context": security},
        }
        (folder / "given").mkdir()
        eat = ["/bin/sh", "-c", "x=x; while :; do x=$x$x; done"]
        eater = {**container, "metadata": {"name": "eater"}, "command": eat, "log_path": "eater.log"}
        nothing = {**container, "metadata": {"name": "nothing"}, "command": ["nonexistent"], "log_path": "nothing.log"}
        documents = {"pod": pod, "sliced": sliced, "container": container, "eater": eater, "nothing": nothing}
        for name, document in documents.items():
            (folder / f"{name}.json").write_text(json.dumps(document))
        shutil.copy(folder / "pod.json", folder / "given" / "pod.json")

    def stop(self) -> None:
        if self.words:
            self.ask(f"{self.words['crictl']} rmp -f -a")
        super().stop()
        self.ask(f"rmdir {V1}/*/pyoci-cri-{Path(self.runtime).name}")
