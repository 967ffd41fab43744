"""What the cluster is given for each handler: the objects of docs/kubernetes.md, as they are there, and others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"
IMAGE = "busybox"
# ends at once when it is asked to, and says so; a shell that is process 1 has no handler of its own
LOOP = "trap 'echo asked to end; exit 3' TERM; echo started; while :; do sleep 0.1; done"
FILTER = "no-directories.json"  # below seccomp/ in the kubelet's directory
SMALL = {"limits": {"memory": "32Mi", "cpu": "100m"}, "requests": {"memory": "16Mi", "cpu": "10m"}}

Object = dict[str, Any]


def label(handler: str) -> str:
    """The node's label that the handler's pods ask for."""
    return "runtime: pyoci" if handler == "pyoci" else f"{handler}: {handler}"


def documented(handler: str) -> dict[str, str]:
    """The YAML documents of docs/kubernetes.md by their kind, for a handler."""
    found = {}
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        kind = re.search(r"^kind: (\w+)$", text, re.MULTILINE)
        assert kind is not None
        found[kind[1]] = re.sub(r"\bpyoci\b", handler, text.replace(label("pyoci"), label(handler)))
    return found


def pod(handler: str, name: str, *containers: Object, **spec: Any) -> Object:
    whole = {"runtimeClassName": handler, "terminationGracePeriodSeconds": 5, "containers": containers, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": whole}


def container(name: str, *command: str, **more: Any) -> Object:
    return {"name": name, "image": IMAGE, "command": command or ("sh", "-c", LOOP), "resources": SMALL, **more}


def probe(*command: str, **more: Any) -> Object:
    return {"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1, **more}


def rich(handler: str, host: Path) -> Object:
    """A pod that uses much of what a pod may ask for; `host` is a directory of the node."""
    volumes = [
        {"name": "map", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 0o440}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "empty", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}},
        {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    mounts = [
        {"name": "map", "mountPath": "/map"},
        {"name": "map", "mountPath": "/etc/only.conf", "subPath": "key", "readOnly": True},
        {"name": "secret", "mountPath": "/secret", "readOnly": True},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "empty", "mountPath": "/empty"},
        {"name": "host", "mountPath": "/host"},
        {"name": "about", "mountPath": "/about"},
    ]
    environment = [
        {"name": "SET", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
    ]
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }
    lifecycle = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo post >/empty/post"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo before >/host/stopping"]}},
    }
    probes = {
        "startupProbe": probe("test", "-e", "/empty/post", failureThreshold=20),
        "readinessProbe": probe("test", "!", "-e", "/empty/busy"),
        "livenessProbe": probe("true"),
    }
    one = container(
        "one", volumeMounts=mounts, env=environment, securityContext=security, lifecycle=lifecycle, **probes,
        workingDir="/empty",
    )  # fmt: skip
    shared = [{"name": "empty", "mountPath": "/srv"}]
    web = container("web", "httpd", "-f", "-p", "8080", "-h", "/srv", volumeMounts=shared, restartPolicy="Always")
    first = container("first", "sh", "-c", "echo first >/srv/index.html", volumeMounts=shared)
    return pod(
        handler, "rich", one,
        initContainers=[first, web], volumes=volumes, shareProcessNamespace=True, hostname="named",
        hostAliases=[{"ip": "192.0.2.1", "hostnames": ["elsewhere"]}],
        securityContext={
            "runAsUser": 1000, "runAsGroup": 1001, "supplementalGroups": [1002], "fsGroup": 2000,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "500"}],
        },
    )  # fmt: skip


def mighty(handler: str, host: Path) -> Object:
    """A pod with the node's namespaces, and a mount that is to come out of it."""
    volume = {"name": "host", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}}
    mount = {"name": "host", "mountPath": "/host"}
    both = {**mount, "mountPropagation": "Bidirectional"}
    into = {**mount, "mountPropagation": "HostToContainer"}
    one = container("one", securityContext={"privileged": True}, volumeMounts=[both])
    two = container("two", volumeMounts=[into])
    return pod(handler, "mighty", one, two, hostNetwork=True, hostPID=True, hostIPC=True, volumes=[volume])


def objects(handler: str, host: Path) -> dict[str, Object]:
    """name of a file -> what is in it; `host` is a directory of the node for this handler."""
    sick = container("one", livenessProbe=probe("test", "!", "-e", "/tmp/sick"))
    eater = container("one", "sh", "-c", "x=x; while :; do x=$x$x; done")
    job = pod(handler, "job", container("one", "sh", "-c", "echo done; exit 0"), restartPolicy="Never")
    crowd = pod(handler, "crowd", container("one"))
    labels = {"app": "crowd"}
    static = pod(handler, f"static-{handler}", container("one", livenessProbe=probe("true")))
    static["metadata"]["namespace"] = handler
    # of the handler that is containerd's default: a kubelet without a cluster knows no RuntimeClass
    alone = pod(handler, f"alone-{handler}", container("one", livenessProbe=probe("test", "!", "-e", "/tmp/sick")))
    alone["metadata"]["namespace"] = "default"
    del alone["spec"]["runtimeClassName"]
    filtered = container("one", securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": FILTER}})
    whole = container("one", resources={"limits": {"memory": "32Mi", "cpu": "1"}})
    lost = {"kind": "RuntimeClass", "metadata": {"name": "nobodys"}, "handler": "nobodys"}
    return {
        "nobodys": {"apiVersion": "node.k8s.io/v1", **lost},
        "lost": pod("nobodys", "lost", container("one")),
        "settings": {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": "value"},
        },
        "hidden": {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"}, "stringData": {"word": "hush"},
        },
        "rich": rich(handler, host),
        "mighty": mighty(handler, host),
        "sick": pod(handler, "sick", sick),
        "eater": pod(handler, "eater", eater, restartPolicy="Never"),
        "absent": pod(handler, "absent", container("one", "nonexistent"), restartPolicy="Never"),
        "failing": pod(handler, "failing", container("one", "sh", "-c", "exit 5"), restartPolicy="Never"),
        "job": {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
            "spec": {"template": {"spec": job["spec"]}, "backoffLimit": 0, "completions": 2, "parallelism": 2},
        },
        "crowd": {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crowd"},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": crowd["spec"]},
            },
        },
        "static": static,
        "alone": alone,
        "filtered": pod(handler, "filtered", filtered),
        "exclusive": pod(handler, "exclusive", whole),
        "sharing": pod(handler, "sharing", container("one")),
    }  # fmt: skip


def write(handler: str, folder: Path) -> None:
    """All of it as files for kubectl."""
    folder.mkdir()
    # of users of pods
    (folder / "host").mkdir()
    (folder / "host").chmod(0o777)
    for kind, text in documented(handler).items():
        (folder / f"{kind.lower()}.yaml").write_text(text, encoding="utf-8")
    for name, whole in objects(handler, folder / "host").items():
        (folder / f"{name}.json").write_text(json.dumps(whole), encoding="utf-8")
