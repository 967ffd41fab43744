"""critest, Kubernetes' own validation of a CRI implementation: containerd's CRI with pyoci, and with peers beside it.

    conformance/critest/run                      with pyoci, runc and crun
    conformance/critest/run --alone              with pyoci
    conformance/critest/run --focus 'Container'  only tests whose names match (critest's --ginkgo.focus)
    conformance/critest/run --report FILE        a table of all of it

critest comes as a Go module and is built once; containerd is the distribution's, and the images are made here and
pulled from a registry on the loopback.  All runtimes run at once, each in namespaces of its own with cgroup v1 alone.
Exits with 1 unless every failure and difference is in differences.txt, with its reason.  Needs root.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import busybox_root
import differences
import registry
from cri import MODULE, PLUGINS, SNIPPET, VERSION, Cri
from engines import isolate

HERE = Path(__file__).resolve().parent
TIMEOUT = 3600
PORT = 4999
FILE = "critest"  # what all tests are of
CACHE = Path("/var/cache/pyoci-check") / f"cri-tools-{VERSION}"
HOSTS = f'[host."http://127.0.0.1:{PORT}"]\n  capabilities = ["pull", "resolve"]\n'
MIRROR = '\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "{folder}/certs.d"\n'
TESTS = "k8s-staging-cri-tools"
WEB = "#!/bin/sh\necho $$ >/var/run/nginx.pid\nhttpd -f -p {port} -h /srv &\nwait\n"
HTTPD = "#!/bin/sh\necho httpd begins\nexec httpd -f -p 80 -h /srv\n"
EUID = '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("Effective uid: %d\\n", geteuid()); }\n'
STATES = {"passed": "ok", "skipped": "skip", "pending": "skip"}


def build() -> Path:
    """critest, built by Go once and kept."""
    program = CACHE / "critest"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        go = shutil.which("go") or "/usr/local/go/bin/go"
        if not Path(go).exists():
            sys.exit("conformance/critest/run: Go is not installed, which builds critest")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
        asked = [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"]
        told = subprocess.run(asked, env=environment, check=True, stdout=subprocess.PIPE, cwd="/", timeout=600)
        words = [go, "test", "-c", "-trimpath", "-o", f"{program}.new", "./cmd/critest"]
        subprocess.run(words, env=environment, check=True, cwd=json.loads(told.stdout)["Dir"], timeout=TIMEOUT)
        os.rename(f"{program}.new", program)
    return program


def make_images(folder: Path) -> None:
    """Stand-ins for all that critest pulls, but for the one that it wants by a digest."""
    images = registry.Images(folder)
    machine = platform.machine()
    root = busybox_root.archive()
    variables = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    plain = {**variables, "Cmd": ["sh"]}
    images.add(("e2e-test-images/busybox:1.29-2",), [root], machine, **plain)
    images.add(("pause:latest",), [root], machine, **variables, Cmd=["tail", "-f", "/dev/null"])
    other = busybox_root.archive({"srv/index.html": "It works\n"}, {"usr/bin/httpd-foreground": HTTPD})
    images.add(("e2e-test-images/httpd:2.4.39-4",), [other], machine, **variables, Cmd=["httpd-foreground"])
    for name, port in (("e2e-test-images/nginx:1.14-2", 80), (f"{TESTS}/hostnet-nginx-amd64:latest", 12003)):
        page = {"srv/index.html": "Welcome\n", "run/x": "", "var/run": "-> /run"}
        web = busybox_root.archive(page, {"usr/bin/nginx": WEB.format(port=port)})
        images.add((name,), [web], machine, **variables, Cmd=["nginx", "master process"])
    if compiler := shutil.which("cc"):
        program = folder / "euid"
        words = [compiler, "-static", "-o", str(program), "-x", "c", "-"]
        subprocess.run(words, input=EUID, text=True, check=True, timeout=60)
        escalating = busybox_root.archive(setuid={"euid": program.read_bytes()})
        images.add(("e2e-test-images/nonewprivs:1.3",), [escalating], machine, **variables, Cmd=["/euid"])
    images.add((f"{TESTS}/test-image-latest:latest",), [root], machine, **plain, Labels={"is": "latest"})
    images.add((f"{TESTS}/test-image-tag:test",), [root], machine, **plain, Labels={"is": "test"})
    images.add((f"{TESTS}/test-image-tag:all",), [root], machine, **plain, Labels={"is": "all"})
    tags = tuple(f"{TESTS}/test-image-tags:{tag}" for tag in "123")
    images.add(tags, [root], machine, **plain, Labels={"is": "tags"})
    for number in "123":
        images.add((f"{TESTS}/test-image-{number}:latest",), [root], machine, **plain, Labels={"is": number})
    for name, user in (
        ("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:users"), ("username-group", "www-data:100"),
    ):  # fmt: skip
        images.add((f"{TESTS}/test-image-user-{name}:latest",), [root], machine, **plain, User=user)
    users = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n",
        "etc/group": "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    }
    grouped = busybox_root.archive(users)
    images.add((f"{TESTS}/test-image-predefined-group:latest",), [grouped], machine, **plain, User="1000")


class Critest(Cri):
    """containerd with pods' networks and a registry that has it all."""

    name = "critest"

    def start(self) -> None:
        handler = Path(self.runtime).name
        self.configure(handler, MIRROR)
        default = self.folder / "certs.d" / "_default"
        default.mkdir(parents=True)
        (default / "hosts.toml").write_text(HOSTS)
        server = registry.serve(self.image, PORT)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.spawn("containerd", "--config", str(self.folder / "config.toml"))
        self.until(f"ctr -a {self.folder}/c.sock version")
        self.words = {"handler": handler}

    def network(self) -> dict[str, object]:
        made = super().network()
        assert isinstance(made["plugins"], list)
        made["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
        return made

    def validate(self, program: Path, focus: str | None) -> dict[str, str]:
        """test -> outcome; what critest said stays in the folder."""
        report = self.folder / "report.json"
        endpoint = f"unix://{self.folder}/c.sock"
        words = [
            str(program), f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", "--config=/none",
            f"--runtime-handler={self.words['handler']}", f"--ginkgo.json-report={report}", "--ginkgo.no-color",
            "--ginkgo.seed=1", *([f"--ginkgo.focus={focus}"] if focus else []),
        ]  # fmt: skip
        with (self.folder / "said").open("wb") as said:
            subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False, timeout=TIMEOUT, cwd=self.folder
            )
        found: dict[str, str] = {}
        for spec in json.loads(report.read_text(encoding="utf-8"))[0]["SpecReports"]:
            if spec["LeafNodeType"] == "It" and not (focus and spec["State"] == "skipped"):
                name = " ".join([*spec["ContainerHierarchyTexts"], spec["LeafNodeText"]]).replace("|", "/")
                found[name] = STATES.get(spec["State"], "fails")
        return found

    def stop(self) -> None:
        ctr = f"ctr -a {self.folder}/c.sock -n k8s.io"
        self.ask(f"for task in $({ctr} task ls -q); do {ctr} task rm -f $task; done")
        super(Cri, self).stop()


def one(program: Path, runtime: str, images: Path, folder: Path, focus: str | None) -> None:
    """In namespaces of its own: one runtime's results, as FOLDER.json."""
    isolate()
    engine = Critest(folder, runtime, images)
    try:
        engine.start()
        found = engine.validate(program, focus)
    finally:
        engine.stop()
    Path(f"{folder}.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--focus", help="only tests whose names match this regular expression")
    parser.add_argument("--report", type=Path, help="where a table of the results goes")
    parser.add_argument("--outputs", type=Path, help="a folder for what critest says")
    parser.add_argument("--one", nargs=2, metavar=("RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    me = "conformance/critest/run"
    if os.geteuid() != 0:
        sys.exit(f"{me}: needs root")
    if options.one:
        folder = Path(options.one[1])
        one(CACHE / "critest", options.one[0], folder.parent / "images", folder, options.focus)
        return 0
    if options.pyoci is None:
        sys.exit(f"{me}: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    needs = ("containerd", "ctr", "unshare", "iptables", "busybox", f"{PLUGINS}/bridge", f"{PLUGINS}/portmap")
    if missing := [name for name in needs if shutil.which(name) is None]:
        sys.exit(f"{me}: not installed: {', '.join(missing)}")
    assert SNIPPET.exists()
    build()
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if not options.alone:
        runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    results: differences.Results = {FILE: {}}
    with tempfile.TemporaryDirectory(prefix="pyoci-ct-", dir="/var/tmp", ignore_cleanup_errors=True) as work:
        make_images(Path(work) / "images")
        running = {}
        for name, path in runtimes.items():
            words = [sys.executable, __file__, *(["--focus", options.focus] if options.focus else [])]
            words += ["--one", path, f"{work}/{name}"]
            running[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        for name, process in running.items():
            process.wait(TIMEOUT + 300)
            said, found = Path(work, name, "said"), Path(f"{work}/{name}.json")
            if options.outputs:
                options.outputs.mkdir(parents=True, exist_ok=True)
                for output in (said, Path(work, name, "daemon.log")):
                    if output.exists():
                        shutil.copy(output, options.outputs / f"{name}-{output.name}")
            if not found.exists():
                sys.exit(f"{me}: critest did not run with {name}")
            results[FILE][name] = json.loads(found.read_text(encoding="utf-8"))
            print(f"{name:8}{differences.counts(results[FILE][name].values())}", flush=True)
    explained = differences.read(HERE / "differences.txt")
    if options.report:
        title = f"critest {VERSION}, cgroup v1"
        table = differences.table(title, ("containerd", *runtimes.values()), results, explained)
        options.report.write_text(table, encoding="utf-8")
    return differences.status(results, explained, whole=not options.focus)


if __name__ == "__main__":
    sys.exit(main())
