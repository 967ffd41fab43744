"""A real, unmodified Kubernetes of one node, whose containerd has pyoci, and peers beside it, as handlers.

    conformance/kubelet/run                  with pyoci, runc and crun in the same cluster
    conformance/kubelet/run --alone          with pyoci
    conformance/kubelet/run --outputs DIR    keeps what all its programs said
    conformance/kubelet/run --build          only builds Kubernetes

etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl come as Go modules (go.mod) and are
built once; containerd is the distribution's, with contrib/containerd/pyoci.toml appended to its configuration.  What is
asked is in cluster_checks.py, of the pods in objects.py, and first of the example of docs/kubernetes.md as it is there.
All runs in namespaces of its own with cgroup v1 (../inside.sh).  Exits with 1 if anything fails with pyoci.  Needs
root, and Go for the build.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import busybox_root
import cluster_checks
import groups
import objects
import registry
from checks import Check
from cri import PLUGINS, Cri
from engines import isolate

HERE = Path(__file__).resolve().parent
VERSION = re.findall(r"k8s.io/kubernetes (v\S+)", (HERE / "go.mod").read_text(encoding="utf-8"))[0]
PROGRAMS = Path("/var/cache/pyoci-check") / f"kubernetes-{VERSION}"
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
NEEDS = ("containerd", "ctr", "unshare", "iptables", "busybox", "openssl", "jq", "ps", "script", f"{PLUGINS}/bridge")
TIMEOUT = 1800
WAIT = 90  # seconds for a program to start
PORT = 4999
ADDRESS = "10.88.8.1"
ROOT = "/run/containerd/runc/k8s.io"  # where containerd's shim tells runtimes to keep their state
# What the kubelet sets for the whole machine.
TUNABLES = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
HOSTS = f'[host."http://127.0.0.1:{PORT}"]\n  capabilities = ["pull", "resolve"]\n'
MORE = """
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{folder}/certs.d"
"""
PEER = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
  BinaryName = "{path}"
"""
# that of runc is in the configuration already
KIND = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
"""
DEFAULT = """
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "{handler}"
"""
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "failSwapOn": False,
    # processors of their own for pods that ask for whole ones
    "cpuManagerPolicy": "static",
    "kubeReserved": {"cpu": "100m"},
    # a full disk of the machine is not what is looked at
    "evictionHard": {"memory.available": "50Mi"},
    "imageGCHighThresholdPercent": 100,
}
FILTER = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
}
# who asks, with which token, in which group
TOKENS = (
    "admin,admin,1,system:masters\n"
    "node,system:node:node,2,system:nodes\n"
    "scheduler,system:kube-scheduler,3,\n"
    "controllers,system:kube-controller-manager,4,system:masters\n"
)


def now() -> str:
    """As Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())


def build() -> None:
    """Kubernetes and etcd, built by Go once and kept."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with (PROGRAMS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all((PROGRAMS / name).exists() for name in (*NAMES, "etcd")):
            return
        go = shutil.which("go") or "/usr/local/go/bin/go"
        if not Path(go).exists():
            sys.exit("conformance/kubelet/run: Go is not installed, which builds Kubernetes")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
        major, minor = VERSION.removeprefix("v").split(".")[:2]
        told = {"gitVersion": VERSION, "gitMajor": major, "gitMinor": minor}
        flags = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items())
        with tempfile.TemporaryDirectory(dir=PROGRAMS) as made:
            words = [go, "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{made}/"]
            # one after the other: linking two of them takes more memory than a small machine has
            for name in NAMES:
                subprocess.run(
                    [*words, f"k8s.io/kubernetes/cmd/{name}"], cwd=HERE, env=environment, check=True, timeout=TIMEOUT
                )
            words[-1] += "etcd"
            subprocess.run(
                [*words, "go.etcd.io/etcd/server/v3"], cwd=HERE, env=environment, check=True, timeout=TIMEOUT
            )
            for path in Path(made).iterdir():
                path.rename(PROGRAMS / path.name)


def make_images(folder: Path) -> None:
    """What pods run, from a static busybox."""
    images = registry.Images(folder)
    machine = platform.machine()
    root = busybox_root.archive()
    variables = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    images.add(("library/busybox:latest",), [root], machine, **variables, Cmd=["sh"])
    images.add(("pause:latest",), [root], machine, **variables, Cmd=["tail", "-f", "/dev/null"])


def own(folder: Path) -> None:
    """What of the machine's the node may not change, in a mount namespace of one's own."""

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True)

    (folder / "log").mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    # the kubelet's statistics of containers look for it there
    Path("/run/containerd").mkdir()
    Path("/run/containerd/containerd.sock").symlink_to(folder / "node" / "c.sock")
    # the kubelet's links to logs are there and nowhere else
    mount("--bind", str(folder / "log"), "/var/log")
    for path in TUNABLES:
        copy = folder / path.replace("/", ".")
        copy.write_bytes(Path("/proc/sys", path).read_bytes())
        mount("--bind", str(copy), f"/proc/sys/{path}")
    # as systemd makes it, and the propagation of volumes' mounts needs it
    mount("--make-rshared", "/")
    subprocess.run(["ip", "link", "add", "node", "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/24", "dev", "node"], check=True)
    subprocess.run(["ip", "link", "set", "node", "up"], check=True)
    subprocess.run(["ip", "route", "add", "default", "via", "10.88.8.2"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class Cluster(Cri):
    """One node with all that a cluster consists of; `peers` are handlers beside pyoci: name -> path."""

    name = "kubelet"

    def __init__(self, folder: Path, runtimes: dict[str, str], images: Path) -> None:
        super().__init__(folder, runtimes["pyoci"], images)
        self.runtimes = runtimes
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment |= {"HOME": str(folder), "KUBECONFIG": str(folder / "admin.conf")}
        self.environment["PATH"] = f"{PROGRAMS}:{os.environ['PATH']}"

    def launch(self, name: str, *words: str) -> None:
        """Start one of its programs."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [name, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=self.environment
            )

    def end(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start(self) -> None:
        folder = self.folder
        peers = {name: path for name, path in self.runtimes.items() if name != "pyoci"}
        more = [(PEER if name == "runc" else KIND + PEER).format(name=name, path=path) for name, path in peers.items()]
        self.configure("pyoci", MORE + "".join(more))
        default = folder / "certs.d" / "_default"
        default.mkdir(parents=True)
        (default / "hosts.toml").write_text(HOSTS)
        server = registry.serve(self.image, PORT)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (folder / "resolv.conf").write_text("nameserver 192.0.2.53\n")
        self.start_containerd()
        self.start_control_plane()
        for place in ("manifests", "kubelet"):
            (folder / place).mkdir()
        (folder / "kubelet" / "seccomp").mkdir()
        (folder / "kubelet" / "seccomp" / objects.FILTER).write_text(json.dumps(FILTER))
        configuration = {
            **KUBELET,
            "containerRuntimeEndpoint": f"unix://{folder}/c.sock",
            "resolvConf": f"{folder}/resolv.conf",
            "staticPodPath": f"{folder}/manifests",
            "volumePluginDir": f"{folder}/plugins",
        }
        (folder / "kubelet.json").write_text(json.dumps(configuration))
        self.start_kubelet()
        self.await_node()
        for handler in self.runtimes:
            objects.write(handler, folder / f"of-{handler}")
            self.until(f"kubectl create namespace {handler}")
            self.until(f"kubectl -n {handler} get serviceaccount default")

    def start_containerd(self) -> None:
        self.launch("containerd", "--config", str(self.folder / "config.toml"))
        self.until(f"ctr -a {self.folder}/c.sock version")

    def start_kubelet(self, alone: bool = False) -> None:
        """Of the cluster, or without one.  It is started again if it ends, as its unit would: containerd listens before
        its CRI plugin answers."""
        words = (
            "kubelet", f"--config={self.folder}/kubelet.json", f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/kubelet/pki", "--hostname-override=node", f"--node-ip={ADDRESS}", "--v=2",
            *(() if alone else (f"--kubeconfig={self.folder}/node.conf",)),
        )  # fmt: skip
        self.launch(*words)
        end = time.monotonic() + WAIT
        while not self.ask("busybox wget -qO- http://127.0.0.1:10248/healthz").startswith("rc=0 ok"):
            if time.monotonic() > end:
                raise RuntimeError(f"the kubelet does not start; see {self.folder}/kubelet.log")
            if self.running["kubelet"].poll() is not None:
                self.launch(*words)
            time.sleep(0.5)

    def await_node(self) -> None:
        """Until the cluster knows that the node is ready, from the kubelet that runs now."""
        lease = "kubectl get lease -n kube-node-lease node -o jsonpath='{.spec.renewTime}'"
        self.until(
            f"[ \"$({lease})\" '>' {now()} ] && kubectl wait node/node --for=condition=Ready --timeout=1s", WAIT
        )

    def start_control_plane(self) -> None:
        folder = self.folder
        (folder / "tokens.csv").write_text(TOKENS)
        for line in TOKENS.splitlines():
            token = line.split(",")[0]
            cluster = {"server": f"https://{ADDRESS}:6443", "insecure-skip-tls-verify": True}
            settings = {
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "c", "user": {"token": token}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            }  # fmt: skip
            (folder / f"{token}.conf").write_text(json.dumps(settings))
        key = f"{folder}/accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, stderr=subprocess.DEVNULL)
        here = "http://127.0.0.1:2379"
        self.launch(
            "etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={here}", f"--advertise-client-urls={here}",
            "--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync",
        )  # fmt: skip
        self.launch(
            "kube-apiserver", f"--etcd-servers={here}", f"--advertise-address={ADDRESS}", f"--cert-dir={folder}/api",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=Node,RBAC", "--allow-privileged",
            "--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP",
        )  # fmt: skip
        self.until("kubectl get --raw /readyz", WAIT)
        self.launch(
            "kube-controller-manager", f"--kubeconfig={folder}/controllers.conf", "--leader-elect=false",
            f"--service-account-private-key-file={key}", f"--root-ca-file={folder}/api/apiserver.crt",
        )  # fmt: skip
        self.launch("kube-scheduler", f"--kubeconfig={folder}/scheduler.conf", "--leader-elect=false")

    def of(self, handler: str) -> None:
        """What the checks are about from here on."""
        self.words = {
            "kubectl": f"kubectl -n {handler}",
            "handler": handler,
            "runtime": self.runtimes[handler],
            "root": f"--root {ROOT}",
            # runc complains about the others' containers that are there
            "list": f"{self.runtimes[handler]} --root {ROOT} list -q" + (" 2>/dev/null" if handler == "runc" else ""),
            "label": objects.label(handler).replace(": ", "="),
            "objects": f"{self.folder}/of-{handler}",
            "folder": str(self.folder),
            "address": ADDRESS,
        }

    def ask_all(self) -> dict[str, dict[str, str]]:
        """handler -> what each check that fails came to."""
        folder = self.folder
        failed: dict[str, dict[str, str]] = {handler: {} for handler in self.runtimes}

        def ask(*tables: tuple[Check, ...], handlers: Iterable[str] = self.runtimes) -> None:
            for handler in handlers:
                self.of(handler)
                for self.table in tables:
                    failed[handler] |= self.check()

        ask(cluster_checks.DOCUMENTED, cluster_checks.RICH, cluster_checks.LIVES)
        for name in ("kubelet", "containerd"):
            self.end(name)
        self.start_containerd()
        self.start_kubelet()
        self.await_node()
        ask(cluster_checks.AGAIN)
        ask(cluster_checks.EXCLUSIVE)
        for name in ("kubelet", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self.end(name)
        configuration = (folder / "config.toml").read_text()
        for handler in self.runtimes:
            self.end("containerd")
            (folder / "config.toml").write_text(configuration + DEFAULT.format(handler=handler))
            self.start_containerd()
            self.start_kubelet(alone=True)
            ask(cluster_checks.STANDALONE, handlers=(handler,))
            self.end("kubelet")
        ask(cluster_checks.GONE)
        return failed

    def stop(self) -> None:
        for name in reversed(list(self.running)):
            self.end(name)


def reap(child: int, results: Path) -> NoReturn:
    """As process 1 does, until the one that has the work to do has ended."""
    ended = 0
    while ended != child:
        ended, _ = os.wait()
    os._exit(0 if results.exists() else 1)


def inside(folder: Path, runtimes: dict[str, str]) -> None:
    """In namespaces of its own: the results, as FOLDER.json."""
    if child := os.fork():
        reap(child, Path(f"{folder}.json"))
    folder.mkdir()
    own(folder)
    cluster = Cluster(folder / "node", runtimes, folder.parent / "images")
    try:
        cluster.start()
        failed = cluster.ask_all()
    finally:
        cluster.stop()
    Path(f"{folder}.json").write_text(json.dumps(failed), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--build", action="store_true", help="only build Kubernetes")
    parser.add_argument("--outputs", type=Path, help="a folder for what the cluster's programs say")
    parser.add_argument("--inside", nargs=2, metavar=("FOLDER", "RUNTIMES"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    # so that what is to be undone at the end is undone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    me = "conformance/kubelet/run"
    if options.inside:
        inside(Path(options.inside[0]), json.loads(options.inside[1]))
        return 0
    if options.build:
        build()
        return 0
    if os.geteuid() != 0:
        sys.exit(f"{me}: needs root")
    if options.pyoci is None:
        sys.exit(f"{me}: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    if missing := [name for name in NEEDS if shutil.which(name) is None]:
        sys.exit(f"{me}: not installed: {', '.join(missing)}")
    build()
    # hierarchies that are mounted nowhere but alive too: without them containerd counts nothing and sees no OOM
    isolate()
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if not options.alone:
        runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    group = f"pyoci-kubelet-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="pyoci-k-", dir="/var/tmp", ignore_cleanup_errors=True) as work:
        make_images(Path(work) / "images")
        words = [str(HERE.parent / "inside.sh"), "v1", group, sys.executable, __file__]
        begun = time.monotonic()
        running = subprocess.Popen(
            [*words, "--inside", f"{work}/k", json.dumps(runtimes)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            running.wait(TIMEOUT)
        finally:
            # unshare ends its child with itself, and that is process 1 of all the others
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
            groups.tidy(group)
        if options.outputs:
            options.outputs.mkdir(parents=True, exist_ok=True)
            for log in Path(work, "k", "node").glob("*.log"):
                shutil.copy(log, options.outputs / log.name)
        found = Path(work, "k.json")
        if not found.exists():
            sys.exit(f"{me}: the cluster did not start; --outputs DIR keeps what its programs said")
        results: dict[str, dict[str, str]] = json.loads(found.read_text(encoding="utf-8"))
    whole = sum(len(table) for table in cluster_checks.ALL)
    for handler, failed in results.items():
        print(f"{handler:8}{whole - len(failed)} of {whole}")
        for name, said in failed.items():
            print(f"    {name}: {said}")
    print(f"Kubernetes {VERSION}, {time.monotonic() - begun:.0f} s")
    return 1 if results["pyoci"] else 0


if __name__ == "__main__":
    sys.exit(main())
