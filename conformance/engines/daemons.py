"""Docker's daemon, and containerd with its own client."""

from __future__ import annotations

import json
from pathlib import Path

import checks
from engine import UNITS, Engine


class Docker(Engine):
    name = "docker"
    needs = ("dockerd", "docker", "containerd", "script")
    table = checks.DOCKER
    more: dict[str, object] = {}  # noqa: RUF012 - nobody changes it

    def start(self) -> None:
        own = Path(self.runtime).name
        runtimes = {} if own == "runc" else {"runtimes": {own: {"path": self.runtime}}}
        settings = {
            **runtimes,
            **self.more,
            "exec-opts": [f"native.cgroupdriver={'systemd' if UNITS else 'cgroupfs'}"],
            "storage-driver": "overlay2",
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "exec"),
            "pidfile": str(self.folder / "pid"),
            "hosts": [f"unix://{self.folder}/s.sock"],
            "iptables": False,
            "ip6tables": False,
            "bridge": "none",
        }
        (self.folder / "daemon.json").write_text(json.dumps(settings))
        self.spawn("dockerd", "--config-file", str(self.folder / "daemon.json"))
        engine = f"docker -H unix://{self.folder}/s.sock"
        self.until(f"{engine} version")
        options = f"--runtime {own} --network none"
        self.words = {
            "engine": engine,
            "options": options,
            "run": f"{engine} run --rm {options}",
            "image": "bb",
            "folder": str(self.folder),
        }
        self.until(f"{engine} import {self.image} bb:latest")


class Containerd(Engine):
    name = "containerd"
    needs = ("containerd", "ctr", "podman")
    table = checks.CONTAINERD

    def start(self) -> None:
        (self.folder / "config.toml").write_text(
            f'version = 2\nroot = "{self.folder}/root"\nstate = "{self.folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self.folder}/c.sock"\n[ttrpc]\n  address = "{self.folder}/t.sock"\n'
        )
        self.spawn("containerd", "--config", str(self.folder / "config.toml"))
        engine = f"ctr -a {self.folder}/c.sock"
        self.until(f"{engine} version")
        options = f"--runtime io.containerd.runc.v2 --runc-binary {self.runtime}"
        if UNITS:
            options += " --runc-systemd-cgroup --cgroup system.slice:pyoci-ctr:one"
        image = "localhost/bb:latest"
        self.words = {"engine": engine, "options": options, "run": f"{engine} run --rm {options}", "image": image}
        # ctr takes archives of images, not of files
        where = " ".join(f"--{what} {self.folder}/{what[:2]}" for what in ("root", "runroot", "tmpdir"))
        archive = self.folder / "image.tar"
        self.until(
            f"podman {where} import {self.image} {image} && "
            f"podman {where} save --format oci-archive -o {archive} {image} && {engine} images import {archive}"
        )
