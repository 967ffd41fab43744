"""What is asked of the cluster for each handler, and what must come back; see ../engines/checks.py for their form."""

from __future__ import annotations

from checks import Check

V1 = "/sys/fs/cgroup"
GET = "{kubectl} get pod {name} -o jsonpath="
ID = "$({kubectl} get pod {name} -o jsonpath='{{.status.containerStatuses[0].containerID}}' | sed s,.*://,,)"
RESTARTS = "jsonpath='{{.status.containerStatuses[0].restartCount}}'=1"
# the kernel's own word: where the container's first process is, and what that group has
GROUP = f"{V1}/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$({{runtime}} {{root}} state {ID} | jq .pid)/cgroup)"
PODS = f"find {V1} -path '*/kubepods*' -name 'pod*' -type d"
NO_CGROUP = f"for i in $(seq 60); do [ -z \"$({PODS})\" ] && exit; sleep 0.5; done; {PODS}; exit 1"
EATEN = "{{.status.phase}} {{.status.containerStatuses[0].state.terminated.reason}}"
ENDED = "{{.status.containerStatuses[0].state.terminated.%s}}"


def of(command: str, name: str) -> str:
    """A command about one pod."""
    return command.replace("{name}", name)


RESIZE = (
    """{kubectl} patch pod rich --subresource resize -p '{{"spec": {{"containers": [{{"name": "one", "resources":"""
    """ {{"limits": {{"memory": "%s", "cpu": "%s"}}}}}}]}}}}' && {kubectl} wait pod/rich --timeout=40s"""
    """ --for=jsonpath='{{.status.containerStatuses[0].resources.limits.memory}}'=%s"""
)
LIMITS = f"{V1}/memory/memory.limit_in_bytes {V1}/cpu/cpu.cfs_quota_us"
EVERY = "0-$(($(nproc --all) - 1))"
CPUS = f"-- cat {V1}/cpuset/cpuset.cpus"
# the interface of a kubelet without a cluster
ASK = (
    "KUBECONFIG=/dev/null kubectl --server=https://{address}:10250 --insecure-skip-tls-verify --token=none"
    " get --raw /"
)
IT = ".items[] | select(.metadata.name == \"alone-{handler}-node\")"
ALONE = f"{ASK}pods | jq -r '{IT} | .status.containerStatuses[0]"

# the page's own example
DOCUMENTED: tuple[Check, ...] = (
    ("the RuntimeClass and the pod", "{kubectl} apply -f {objects}/runtimeclass.yaml -f {objects}/pod.yaml",
     r"^rc=0 .*runtimeclass.node.k8s.io/{handler} created pod/hello created"),
    ("no node for it", "{kubectl} wait pod/hello --for=condition=PodScheduled=false --timeout=20s &&"
     " {kubectl} get events -o jsonpath='{{.items[*].message}}'", r"^rc=0 .*didn't match Pod's node affinity/selector"),
    # not while a pod waits for it: a kubelet that hears of the pod before it hears of its own label fails it for good
    ("a label for the node", "{kubectl} delete pod hello && {kubectl} label node node {label}", r"^rc=0 .*labeled"),
    ("the pod again", "sleep 2; {kubectl} apply -f {objects}/pod.yaml", r"^rc=0 pod/hello created"),
    ("ready", "{kubectl} wait pod/hello --for=condition=Ready --timeout=40s", r"^rc=0\b"),
    ("where", "{kubectl} get pod hello -o wide", r"^rc=0 .*hello 1/1 Running 0 \S+ 10\.88\.7\.\d+ node\b"),
    ("exec", "{kubectl} exec hello -- hostname", r"^rc=0 hello$"),
    ("logs", "{kubectl} logs hello", r"^rc=0 hello$"),
    ("two containers on the node", "{list} | wc -l; {list}; echo " + of(ID, "hello"),
     r"^rc=0 2 .*\b(\w{64}) (.* )?\1$"),
    ("the handler", "ctr -a {folder}/c.sock -n k8s.io c info " + of(ID, "hello")
     + " | jq -r .Runtime.Options.value | base64 -d", r"^rc=0 .*{runtime}"),
    ("memory", "cat " + of(GROUP, "hello") + "/memory.limit_in_bytes", r"^rc=0 67108864$"),
    ("processor", "cat $(echo " + of(GROUP, "hello") + " | sed s,/memory/,/cpu/,)/cpu.cfs_quota_us", r"^rc=0 50000$"),
    ("as the container sees it", f"{{kubectl}} exec hello -- cat {V1}/memory/memory.limit_in_bytes",
     r"^rc=0 67108864$"),
)  # fmt: skip

RICH: tuple[Check, ...] = (
    ("a pod with much in it", "{kubectl} apply -f {objects}/settings.json -f {objects}/hidden.json"
     " -f {objects}/rich.json && {kubectl} wait pod/rich --for=condition=Ready --timeout=50s", r"^rc=0\b"),
    ("user", "{kubectl} exec rich -c one -- id", r"^rc=0 uid=1000 gid=1001 groups=1001,1002,2000$"),
    ("environment", "{kubectl} exec rich -c one -- sh -c 'echo $SET $ADDRESS $LIMIT $PWD'",
     r"^rc=0 value 10\.88\.7\.\d+ 33554432 /empty$"),
    ("ConfigMap, subPath, downward API", "{kubectl} exec rich -c one -- cat /map/key /etc/only.conf /about/labels",
     r'^rc=0 valuevalueapp="rich"$'),
    ("Secret", "{kubectl} exec rich -c one -- sh -c 'cat /secret/word; stat -L -c \" %a %g\" /secret/word'",
     r"^rc=0 hush 440 2000$"),
    ("a service account's token", "{kubectl} exec rich -c one -- cat"
     " /var/run/secrets/kubernetes.io/serviceaccount/namespace", r"^rc=0 {handler}$"),
    ("memory for files", "{kubectl} exec rich -c one -- df -k /memory", r"^rc=0 .*tmpfs 8192 "),
    ("read-only root", "{kubectl} exec rich -c one -- touch /x", r"^rc=1 .*Read-only file system"),
    ("capabilities, seccomp, no new privileges", "{kubectl} exec rich -c one -- grep -E"
     " '^(CapBnd|Seccomp|NoNewPrivs):' /proc/self/status",
     r"^rc=0 CapBnd: 0{13}400 NoNewPrivs: 1 Seccomp: 2$"),
    ("sysctl", "{kubectl} exec rich -c one -- cat /proc/sys/net/ipv4/ip_unprivileged_port_start", r"^rc=0 500$"),
    ("hosts", "{kubectl} exec rich -c one -- sh -c 'hostname; cat /etc/hosts'",
     r"^rc=0 named .*192\.0\.2\.1 elsewhere"),
    ("one namespace of processes", "{kubectl} exec rich -c one -- ps -o pid,comm", r"^rc=0 .* 1 tail .*\bhttpd\b"),
    ("one network", "{kubectl} exec rich -c one -- wget -qO- http://localhost:8080/", r"^rc=0 first$"),
    ("another pod's network", "{kubectl} exec hello -- wget -qO-"
     " http://$({kubectl} get pod rich -o jsonpath='{{.status.podIP}}'):8080/", r"^rc=0 first$"),
    ("port-forward", "{kubectl} port-forward pod/rich 18080:8080 >/dev/null & sleep 2;"
     " wget -qO- http://127.0.0.1:18080/; status=$?; kill $!; wait; exit $status", r"^rc=0 first$"),
    ("exec's status", "{kubectl} exec rich -c one -- sh -c 'exit 5'", r"^rc=5\b"),
    ("exec of nothing", "{kubectl} exec rich -c one -- nonexistent", r"^rc=1.* .*executable file .*not found"),
    ("exec with input", "echo given | {kubectl} exec -i rich -c one -- cat", r"^rc=0 given$"),
    ("exec on a terminal", "script -qec \"{kubectl} exec -it rich -c one -- tty\" /dev/null", r"^rc=0 .*/dev/pts/"),
    ("cp", "{kubectl} cp {objects}/static.json rich:/empty/copy -c one &&"
     " {kubectl} exec rich -c one -- cat /empty/copy | cmp - {objects}/static.json", r"^rc=0 $"),
    ("not ready", "{kubectl} exec rich -c one -- touch /empty/busy &&"
     " {kubectl} wait pod/rich --for=condition=Ready=false --timeout=20s", r"^rc=0\b"),
    ("ready again", "{kubectl} exec rich -c one -- rm /empty/busy &&"
     " {kubectl} wait pod/rich --for=condition=Ready --timeout=20s", r"^rc=0\b"),
    ("a container to look into it", "{kubectl} debug rich --image=busybox --target=one -c look -- ps -o pid,args"
     " && {kubectl} wait pod/rich --timeout=20s"
     " --for=jsonpath='{{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}}'=0"
     " && {kubectl} logs rich -c look", r"^rc=0 .*\bhttpd -f\b"),
    ("more resources", RESIZE % ("96Mi", "300m", "96Mi"), r"^rc=0\b"),
    ("given", "{kubectl} exec rich -c one -- cat " + LIMITS, r"^rc=0 100663296 30000$"),
    ("fewer resources", RESIZE % ("24Mi", "150m", "24Mi"), r"^rc=0\b"),
    ("taken", "{kubectl} exec rich -c one -- cat " + LIMITS, r"^rc=0 25165824 15000$"),
    ("not restarted for it", of(GET, "rich") + "'{{.status.containerStatuses[0].restartCount}}'", r"^rc=0 0$"),
    ("statistics", "for i in $(seq 30); do {kubectl} get --raw /api/v1/nodes/node/proxy/stats/summary | jq -e"
     " '.pods[] | select(.podRef.name == \"rich\" and .podRef.namespace == \"{handler}\") | .containers[] |"
     " select(.name == \"one\") | .cpu.usageCoreNanoSeconds > 0 and .memory.workingSetBytes > 0' && exit; sleep 1;"
     " done; exit 1", r"^rc=0 true"),
    ("statistics as metrics", "{kubectl} get --raw /api/v1/nodes/node/proxy/metrics/resource | grep {handler}",
     r'^rc=0 .*container_memory_working_set_bytes\{container="one",namespace="{handler}",pod="rich"\}'),
    ("what it says before it stops", "{kubectl} delete pod rich --timeout=30s && cat {objects}/host/stopping",
     r"^rc=0 .*before$"),
)  # fmt: skip

LIVES: tuple[Check, ...] = (
    ("a pod that gets sick", "{kubectl} apply -f {objects}/sick.json && {kubectl} wait pod/sick --for=condition=Ready"
     " --timeout=30s && {kubectl} exec sick -- touch /tmp/sick", r"^rc=0\b"),
    ("is restarted", "{kubectl} wait pod/sick --timeout=40s --for=" + RESTARTS, r"^rc=0\b"),
    ("what the first one said", "{kubectl} wait pod/sick --for=condition=Ready --timeout=30s >/dev/null;"
     " {kubectl} logs --previous sick", r"^rc=0 started asked to end$"),
    ("and how it ended", of(GET, "sick") + "'{{.status.containerStatuses[0].lastState.terminated.exitCode}}'",
     r"^rc=0 3$"),
    ("one that eats", "{kubectl} apply -f {objects}/eater.json &&"
     " {kubectl} wait pod/eater --for=jsonpath='{{.status.phase}}'=Failed --timeout=50s", r"^rc=0\b"),
    ("is killed for its memory", of(GET, "eater") + f"'{EATEN}'", r"^rc=0 Failed OOMKilled$"),
    ("one without a program", "{kubectl} apply -f {objects}/absent.json &&"
     " {kubectl} wait pod/absent --for=jsonpath='{{.status.phase}}'=Failed --timeout=50s", r"^rc=0\b"),
    ("and why", of(GET, "absent") + f"'{ENDED % 'exitCode'} {ENDED % 'message'}'",
     r"^rc=0 128 .*executable file .*not found"),
    ("one that fails", "{kubectl} apply -f {objects}/failing.json &&"
     " {kubectl} wait pod/failing --for=jsonpath='{{.status.phase}}'=Failed --timeout=50s", r"^rc=0\b"),
    ("with what", of(GET, "failing") + f"'{ENDED % 'exitCode'} {ENDED % 'reason'}'", r"^rc=0 5 Error$"),
    ("a Job", "{kubectl} apply -f {objects}/job.json && {kubectl} wait job/job --for=condition=complete --timeout=50s"
     " && {kubectl} logs -l job-name=job", r"^rc=0 .*done done$"),
    ("a Deployment", "{kubectl} apply -f {objects}/crowd.json && {kubectl} rollout status deployment/crowd"
     " --timeout=50s", r"^rc=0 .*successfully rolled out"),
    ("made new", "{kubectl} rollout restart deployment/crowd && {kubectl} rollout status deployment/crowd"
     " --timeout=50s", r"^rc=0 .*successfully rolled out"),
    ("the node's namespaces", "{kubectl} apply -f {objects}/mighty.json && {kubectl} wait pod/mighty"
     " --for=condition=Ready --timeout=30s && {kubectl} exec mighty -c one -- sh -c"
     " 'ip addr show node; for p in self 1; do readlink /proc/$p/ns/pid; done | uniq | wc -l'",
     r"^rc=0 .*10\.88\.8\.1/24 .* 1$"),
    ("privileged", "{kubectl} exec mighty -c one -- sh -c 'grep Seccomp: /proc/self/status; ls /dev/kmsg'",
     r"^rc=0 Seccomp: 0 /dev/kmsg$"),
    ("a mount that comes out", "{kubectl} exec mighty -c one -- sh -c 'mkdir -p /host/m && mount -t tmpfs t /host/m"
     " && touch /host/m/x' && ls {objects}/host/m", r"^rc=0 x$"),
    ("and into another", "{kubectl} exec mighty -c two -- ls /host/m", r"^rc=0 x$"),
    ("a filter of the node's", "{kubectl} apply -f {objects}/filtered.json && {kubectl} wait pod/filtered"
     " --for=condition=Ready --timeout=30s && {kubectl} exec filtered -- mkdir /x", r"^rc=1 .*Operation not permitted"),
    ("a handler that is none", "{kubectl} apply -f {objects}/nobodys.json -f {objects}/lost.json >/dev/null;"
     " for i in $(seq 40); do {kubectl} get events -o jsonpath='{{.items[*].message}}' --field-selector"
     " involvedObject.name=lost,reason=FailedCreatePodSandBox | grep . && exit; sleep 0.5; done; exit 1",
     r'^rc=0 .*no runtime for "nobodys" is configured'),
    ("a static pod", "cp {objects}/static.json {folder}/manifests/{handler}.json; for i in $(seq 60); do {kubectl} wait"
     " pod/static-{handler}-node --for=condition=Ready --timeout=1s && exit; sleep 0.5; done; exit 1", r"^rc=0\b"),
    ("it answers", "{kubectl} exec static-{handler}-node -- hostname", r"^rc=0 static-{handler}-node$"),
)  # fmt: skip

# after the kubelet and containerd were ended and started again
AGAIN: tuple[Check, ...] = (
    ("still ready", "{kubectl} wait pod/hello pod/sick --for=condition=Ready --timeout=30s", r"^rc=0\b"),
    ("the same container", "{list}; echo " + of(ID, "hello"), r"^rc=0 (\w{64} )*(\w{64}) (\w{64} )*\2$"),
    ("not restarted", of(GET, "hello") + "'{{.status.containerStatuses[0].restartCount}}'", r"^rc=0 0$"),
    # the kubelet learns from the cluster which pods are its own
    ("exec again", "for i in $(seq 40); do {kubectl} exec hello -- hostname && exit; sleep 0.5; done; exit 1",
     r"^rc=0 .*hello$"),
    ("restarted once more", "{kubectl} exec sick -- touch /tmp/sick && {kubectl} wait pod/sick --timeout=50s --for="
     + RESTARTS.replace("=1", "=2"), r"^rc=0\b"),
    ("the static pod goes with its file", "rm {folder}/manifests/{handler}.json && {kubectl} wait"
     " pod/static-{handler}-node --for=delete --timeout=40s", r"^rc=0\b"),
    ("a pod goes", "{kubectl} delete pod hello --grace-period=1 --timeout=30s", r"^rc=0\b"),
    ("all go", "{kubectl} delete deployment,job,pod --all --grace-period=1 --timeout=50s", r"^rc=0\b"),
)  # fmt: skip

# one pod with a processor of its own, where nothing else runs
EXCLUSIVE: tuple[Check, ...] = (
    ("a pod on all processors", "{kubectl} apply -f {objects}/sharing.json && {kubectl} wait pod/sharing"
     " --for=condition=Ready --timeout=30s && [ $({kubectl} exec sharing " + CPUS + ") = " + EVERY + " ]", r"^rc=0\b"),
    ("one with its own", "{kubectl} apply -f {objects}/exclusive.json && {kubectl} wait pod/exclusive"
     " --for=condition=Ready --timeout=30s >/dev/null && {kubectl} exec exclusive " + CPUS, r"^rc=0 .* \d+$"),
    ("is left alone", "for i in $(seq 50); do [ \"$({kubectl} exec sharing " + CPUS + ")\" = " + EVERY + " ] || {{"
     " for pod in sharing exclusive; do {kubectl} exec $pod " + CPUS + "; done; exit; }}; sleep 0.5; done; exit 1",
     r"^rc=0 (\S+) (?!\1$)\d+$"),
    ("it gives it back", "{kubectl} delete pod exclusive && for i in $(seq 50); do"
     " [ \"$({kubectl} exec sharing " + CPUS + ")\" = " + EVERY + " ] && exit; sleep 0.5; done; exit 1", r"^rc=0\b"),
    ("both go", "{kubectl} delete pod --all --grace-period=1 --timeout=50s", r"^rc=0\b"),
    ("and their cgroups", NO_CGROUP, r"^rc=0 $"),
)  # fmt: skip

# a kubelet without a cluster, and the handler as containerd's default
STANDALONE: tuple[Check, ...] = (
    ("a manifest", "cp {objects}/alone.json {folder}/manifests/ && for i in $(seq 60); do"
     " [ \"$(" + ALONE + ".ready')\" = true ] && exit; sleep 0.5; done; exit 1", r"^rc=0\b"),
    ("the default", "id=$(" + ALONE + ".containerID'); {list} | grep ${{id#*://}}", r"^rc=0 \w{64}$"),
    ("its log", ASK + "containerLogs/default/alone-{handler}-node/one", r"^rc=0 started$"),
    ("it gets sick", "id=$(" + ALONE + ".containerID'); {runtime} {root} exec ${{id#*://}} touch /tmp/sick &&"
     " for i in $(seq 60); do [ \"$(" + ALONE + ".restartCount')\" = 1 ] && exit; sleep 0.5; done; exit 1", r"^rc=0\b"),
    ("how the first one ended", ALONE + ".lastState.terminated.exitCode'", r"^rc=0 3$"),
    ("it goes with its manifest", "rm {folder}/manifests/alone.json; for i in $(seq 60); do [ -z \"$({list})\" ] &&"
     " exit; sleep 0.5; done; {list}; exit 1", r"^rc=0 $"),
    ("and so do its cgroups", NO_CGROUP, r"^rc=0 $"),
)  # fmt: skip

# when the pods of all handlers are to be gone
GONE: tuple[Check, ...] = (
    ("none is left", "for i in $(seq 40); do [ -z \"$({list})\" ] && exit; sleep 0.5; done;"
     " {list}; exit 1", r"^rc=0 $"),
    ("nor a cgroup", NO_CGROUP, r"^rc=0 $"),
    ("nor a process", "ps -eo args | grep -E '[s]him|[a]sked to end|[p]yoci init'", r"^rc=1 $"),
)  # fmt: skip

ALL = (DOCUMENTED, RICH, LIVES, AGAIN, EXCLUSIVE, STANDALONE, GONE)
