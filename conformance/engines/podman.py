"""podman and buildah: no daemon, everything below directories that flags name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import podman_checks
from engine import LIMITS, Engine

UID = 4323
GROUP = 4324  # another that its user is in
ULIMITS = f"--ulimit {LIMITS} --ulimit nproc=20000:20000"
NETWORKS = ("/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")
SHIPPED = Path(__file__).parents[2] / "contrib" / "containers.conf.d" / "pyoci.conf"
SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
}
HOOK = {
    "version": "1.0.0",
    "hook": {"path": "/bin/sh", "args": ["sh", "-c", "cat >{folder}/hooked"]},
    "when": {"annotations": {"^say$": ".*"}},
    "stages": ["prestart"],
}
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: played}
spec:
  containers:
  - name: one
    image: localhost/bb
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo out of yaml; sleep 1000"]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
"""


def build_context(folder: Path, base: str) -> None:
    """What is built from, and files that checks mount into containers."""
    folder.mkdir()
    (folder / "Containerfile").write_text(f"FROM {base}\nCOPY root/bin/busybox /again\nRUN echo made >/made\n")
    (folder / "root" / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "root" / "bin" / "busybox")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    (folder / "seccomp.json").write_text(json.dumps(SECCOMP))
    (folder / "pod.yaml").write_text(POD)
    (folder / "hooks").mkdir()
    (folder / "hooks" / "say.json").write_text(json.dumps(HOOK).replace("{folder}", str(folder)))


class Podman(Engine):
    name = "podman"
    needs: tuple[str, ...] = ("podman", "conmon", "script", "iptables", "catatonit", "cc", *NETWORKS)
    table = podman_checks.PODMAN

    def settings(self) -> str:
        """What is shipped for users, and the limits of a machine whose root may not raise them."""
        name = Path(self.runtime).name
        return (
            f'[containers]\ndefault_ulimits = ["{LIMITS}", "nproc=20000:20000"]\n\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{self.folder}/networks"\n\n'
            + SHIPPED.read_text().replace("[engine]", '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"')
            + f'\n{name} = ["{self.runtime}"]\n' * (name not in ("pyoci", "runc", "crun"))
        )

    def call(self, engine: str) -> None:
        """Let checks use `engine`, the words that run podman."""
        options = "--network none"
        self.words = {
            "engine": engine,
            "options": options,
            "run": f"{engine} run --rm {options}",
            "image": "localhost/bb",
            "folder": str(self.folder / "build"),
            "ulimits": ULIMITS,
        }

    def start(self) -> None:
        build_context(self.folder / "build", "localhost/bb")
        configuration = self.folder / "containers.conf"
        configuration.write_text(self.settings())
        self.environment["CONTAINERS_CONF"] = str(configuration)
        where = " ".join(f"--{what} {self.folder}/{what}" for what in ("root", "runroot", "tmpdir"))
        engine = f"podman {where} --runtime {self.runtime}"
        self.call(engine)
        self.until(f"{engine} import --change 'CMD [\"/bin/sh\"]' {self.image} localhost/bb:latest")

    def stop(self) -> None:
        engine = self.words["engine"]
        self.ask(f"{engine} pod rm -af -t 0; {engine} rm -af -t 0; {engine} rmi -af")
        self.ask("rmdir /sys/fs/cgroup/*/pyoci-parent/conmon; rmdir /sys/fs/cgroup/*/pyoci-parent")


class Buildah(Engine):
    name = "buildah"
    needs = ("buildah", "conmon", "script")
    table = podman_checks.BUILDAH

    def start(self) -> None:
        build_context(self.folder / "build", "scratch")
        (self.folder / "build" / "Containerfile").write_text("FROM scratch\nADD image.tar /\nRUN echo made >/made\n")
        os.link(self.image, self.folder / "build" / "image.tar")
        engine = " ".join(["buildah", *(f"--{what} {self.folder}/{what}" for what in ("root", "runroot"))])
        self.words = {
            "engine": engine,
            "options": f"--isolation oci --runtime {self.runtime} --network none",
            "folder": str(self.folder / "build"),
            "ulimits": ULIMITS,
        }

    def stop(self) -> None:
        self.ask(f"{self.words['engine']} rm -a; {self.words['engine']} rmi -af")


class Rootless(Podman):
    """podman of a user with subordinate ids, who is known in this mount namespace only."""

    name = "rootless"
    needs = ("podman", "conmon", "script", "newuidmap", "newgidmap", "setpriv")
    table = podman_checks.ROOTLESS

    def start(self) -> None:
        build_context(self.folder / "build", "localhost/bb")
        configuration = self.folder / "containers.conf"
        configuration.write_text(self.settings().replace(f"{self.folder}/networks", f"{self.folder}/home/networks"))
        lines = {
            "passwd": f"pyoci-tester:x:{UID}:{UID}::{self.folder}/home:/bin/sh\n",
            "group": f"pyoci-tester:x:{UID}:\n",
            "subuid": "pyoci-tester:2000000:65536\n",
            "subgid": "pyoci-tester:2000000:65536\n",
        }
        for name, line in lines.items():
            there = Path("/etc", name)
            there.touch()
            (self.folder / name).write_text(there.read_text() + line)
            subprocess.run(["mount", "--bind", str(self.folder / name), str(there)], check=True)
        for folder, mode in ((self.folder, 0o755), (self.folder.parent, 0o755)):
            folder.chmod(mode)
        for name in ("home", "run", "build"):
            (self.folder / name).mkdir(exist_ok=True)
            subprocess.run(["chown", "-R", f"{UID}:{UID}", str(self.folder / name)], check=True)
        (self.folder / "run").chmod(0o700)
        shared = self.folder / "build" / "shared"
        shared.write_text("group's\n")
        shared.chmod(0o640)
        os.chown(shared, 0, GROUP)
        engine = (
            f"cd / && setpriv --reuid={UID} --regid={UID} --groups={GROUP} env -i HOME={self.folder}/home"
            f" USER=pyoci-tester"
            f" XDG_RUNTIME_DIR={self.folder}/run PATH=/usr/sbin:/usr/bin:/bin CONTAINERS_CONF={configuration}"
            f" podman --storage-driver overlay --runtime {self.runtime}"
        )
        self.call(engine)
        self.words["home"] = str(self.folder)
        # the process that holds the user's namespaces would hold our pipe too
        self.ask(f"{engine} info >/dev/null 2>&1")
        self.until(f"{engine} import --change 'CMD [\"/bin/sh\"]' {self.image} localhost/bb:latest")

    def stop(self) -> None:
        super().stop()
        self.ask(f"{self.words['engine']} system migrate")
        for name in ("passwd", "group", "subuid", "subgid"):
            subprocess.run(["umount", f"/etc/{name}"], check=False)
