"""Checkpoint and restore through engines: what goes on has counted further in its memory, in a file beside it."""

from __future__ import annotations

import shutil
import subprocess

from checks import Check
from daemons import Containerd, Docker
from podman import Podman

COUNT = "sh -c 'i=0; while :; do i=$((i+1)); echo $i >/m; mv /m /n; sleep 0.05; done'"
# the counter must not have begun anew
FURTHER = "sh -c 'until [ $(cat /n) -gt $0 ]; do sleep 0.1; done; [ $(cat /n) -lt $(($0+1000)) ] && echo further'"

PODMAN: tuple[Check, ...] = (
    ("to be written", "{engine} run -d {options} --name k1 {image} " + COUNT + " && sleep 2", r"^rc=0\b"),
    ("left running",
     "{engine} container checkpoint --leave-running k1 && {engine} inspect -f '{{{{.State.Status}}}}' k1",
     r"^rc=0 .*\brunning\b"),
    ("written", "{engine} exec k1 cat /n >{folder}/n && {engine} container checkpoint --print-stats k1",
     r"^rc=0 .*_time"),
    ("and stopped", "{engine} inspect -f '{{{{.State.Status}}}} {{{{.State.Checkpointed}}}}' k1",
     r"^rc=0 exited true\b"),
    ("restored", "{engine} container restore k1 && {engine} exec k1 " + FURTHER + " $(cat {folder}/n)",
     r"^rc=0 .*\bfurther\b"),
    ("as it was", "{engine} exec k1 grep -E 'Seccomp:|CapEff|CapBnd' /proc/1/status",
     r"^rc=0 CapEff:\s*(0*\w+) CapBnd:\s*\1 Seccomp:\s*2\b"),
    ("its log", "{engine} logs k1", r"^rc=0\b"),
    ("with connections", "{engine} container checkpoint --tcp-established --file-locks k1 && {engine} container restore"
     " --tcp-established --file-locks k1", r"^rc=0\b"),
    ("kept", "{engine} exec k1 cat /n >{folder}/n && {engine} container checkpoint --keep k1"
     " && {engine} container restore --keep k1 && {engine} exec k1 " + FURTHER + " $(cat {folder}/n)",
     r"^rc=0 .*\bfurther\b"),
    ("exported", "{engine} exec k1 sh -c 'echo kept >/kept' && {engine} container checkpoint --export"
     " {folder}/k1.tar.gz k1 && {engine} rm k1", r"^rc=0\b"),
    ("imported", "{engine} container restore --import {folder}/k1.tar.gz --name k2 && {engine} exec k2 "
     + FURTHER + " $(cat {folder}/n) && {engine} exec k2 cat /kept", r"^rc=0 .*\bfurther kept\b"),
    ("imported again", "{engine} container restore --import {folder}/k1.tar.gz --name k3 && {engine} ps -q | wc -l",
     r"^rc=0 .*\b2$"),
    # of kernels without CONFIG_MEM_SOFT_DIRTY
    ("its memory before", "{engine} container checkpoint --pre-checkpoint --export {folder}/pre.tar.gz k2",
     r"^rc=0\b|racking memory|missing features|errno 56"),
    ("the rest", "{engine} container checkpoint --with-previous --export {folder}/rest.tar.gz k2 && {engine} rm k2 &&"
     " {engine} container restore --import-previous {folder}/pre.tar.gz --import {folder}/rest.tar.gz",
     r"^rc=0\b|racking memory|missing features|errno 56"),
    ("what cannot be restored", "{engine} container checkpoint k3 && {engine} rm -f k3; {engine} container restore k3",
     r"^rc=[1-9]\d* .*k3"),
)  # fmt: skip

CONTAINERD: tuple[Check, ...] = (
    ("to be written", "{engine} run -d {options} {image} k1 " + COUNT + " && sleep 2", r"^rc=0\b"),
    ("written", "{engine} task exec --exec-id e1 k1 cat /n >{folder}/n && {engine} containers checkpoint --rw"
     " --image --task k1 localhost/k1:written", r"^rc=0\b"),
    ("it goes on", "{engine} task exec --exec-id e2 k1 " + FURTHER + " $(cat {folder}/n)", r"^rc=0 .*\bfurther\b"),
    ("away", "{engine} task kill -s KILL k1; sleep 1; {engine} task delete k1; {engine} containers rm k1", r"^rc=0\b"),
    ("restored", "{engine} containers restore --rw --live k2 localhost/k1:written </dev/null >{folder}/out 2>&1 &"
     " sleep 3; {engine} task ls; cat {folder}/out", r"^rc=0 .*k2\s+\d+\s+RUNNING"),
    ("further", "{engine} task exec --exec-id e3 k2 " + FURTHER + " $(cat {folder}/n)", r"^rc=0 .*\bfurther\b"),
    ("ended", "{engine} task kill -s KILL k2; sleep 1; {engine} task delete k2; {engine} containers rm k2;"
     " {engine} task ls", r"^rc=\d+ (?!.*RUNNING)"),
)  # fmt: skip

DOCKER: tuple[Check, ...] = (
    ("to be written", "{engine} run -d {options} --name k1 {image} " + COUNT + " && sleep 2", r"^rc=0\b"),
    ("left running", "{engine} checkpoint create --leave-running k1 one && {engine} exec k1 echo on",
     r"^rc=0 .*\bon\b"),
    ("written", "{engine} checkpoint create k1 two && sleep 1 && {engine} inspect -f '{{{{.State.Status}}}}' k1",
     r"^rc=0 .*\bexited\b"),
    ("listed", "{engine} checkpoint ls k1", r"^rc=0 .*\bone\b.*\btwo\b"),
    # moby's: the daemon of 20.10 to 26 stores the images a second time when it starts from them
    ("started from it", "{engine} start --checkpoint two k1", r"^rc=0\b|content.* already exists"),
    ("removed", "{engine} rm -f k1", r"^rc=0\b"),
)  # fmt: skip


def unfit() -> str:
    """Why CRIU does nothing here, "" if it works."""
    program = shutil.which("criu")
    if program is None:
        return "criu is not installed"
    done = subprocess.run([program, "check"], capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else f"criu does not work with this kernel: {done.stderr.strip()[:200]}"


class PodmanCheckpoint(Podman):
    name = "podman-checkpoint"
    table = PODMAN
    unfit = staticmethod(unfit)


class ContainerdCheckpoint(Containerd):
    name = "containerd-checkpoint"
    table = CONTAINERD
    unfit = staticmethod(unfit)

    def start(self) -> None:
        super().start()
        self.words["folder"] = str(self.folder)


class DockerCheckpoint(Docker):
    name = "docker-checkpoint"
    table = DOCKER
    unfit = staticmethod(unfit)

    def start(self) -> None:
        self.more = {"experimental": True}
        super().start()
