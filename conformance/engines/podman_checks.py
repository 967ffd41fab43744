"""What is asked of podman and of buildah, beside what checks.py asks of every engine."""

from __future__ import annotations

from checks import COMMON, LOOP, Check

VOLUMES: tuple[Check, ...] = (
    ("a named volume", "{run} -v v1:/v {image} sh -c 'echo kept >/v/f' && {run} -v v1:/v {image} cat /v/f",
     r"^rc=0 kept\b"),
    ("options of a volume", "{run} -v {folder}:/v:nosuid,nodev,noexec {image} sh -c 'grep \" /v \""
     " /proc/mounts; /v/program'",
     r"^rc=126 (?=.*nosuid)(?=.*nodev)(?=.*noexec).*Permission denied"),
    ("propagation", "{run} -v {folder}:/v:rslave {image} grep ' /v ' /proc/self/mountinfo", r"^rc=0\b"),
    ("an overlay", "{run} -v {folder}:/v:O {image} sh -c 'echo x >/v/overlaid && cat /v/overlaid'; ls {folder}",
     r"^rc=0 x (?!.*overlaid)"),
    ("an owner", "mkdir -p {folder}/own && {run} --user 77:78 -v {folder}/own:/v:U {image} sh -c 'touch /v/x"
     " && stat -c %u:%g /v'",
     r"^rc=0 77:78\b"),
    ("labels", "{run} -v {folder}:/v:Z,ro {image} true", r"^rc=0\b"),
    ("without the volumes below", "{run} --mount type=bind,src={folder},dst=/v,bind-nonrecursive=true {image}"
     " ls /v/Containerfile",
     r"^rc=0 /v/Containerfile"),
    ("a tmpfs with a size", "{run} --mount type=tmpfs,dst=/t,tmpfs-size=65536,tmpfs-mode=700 {image}"
     " sh -c 'stat -c %a /t; head -c 100000 /dev/zero >/t/x'", r"^rc=1 700 head: standard output"),
    ("an image as a volume", "{run} --mount type=image,src={image},dst=/i {image} ls -d /i/bin/busybox",
     r"^rc=0 /i/bin"),
    ("pseudo-terminals", "{run} --mount type=devpts,dst=/p {image} stat -f -c %T /p",
     r"^rc=0 devpts\b|^rc=0 UNKNOWN|^rc=0 0x1cd1"),
    ("a file", "{run} -v {folder}/Containerfile:/f:ro {image} cat /f", r"^rc=0 FROM"),
    ("volumes of another", "{engine} create --name vf {options} -v v1:/v {image} true && {run} --volumes-from"
     " vf {image} cat /v/f",
     r"^rc=0 .*\bkept\b"),
    ("of none", "{engine} rm vf && {engine} volume rm v1", r"^rc=0\b"),
    ("id-mapped", "{run} --uidmap 0:100000:1000 --gidmap 0:100000:1000 -v {folder}:/v:idmap {image} stat -c"
     " %u:%g /v/Containerfile",
     r"^rc=0 0:0\b"),
)  # fmt: skip

HEALTH: tuple[Check, ...] = (
    ("to be healthy", "{engine} run -d {options} --name h1 --health-cmd 'test -e /healthy' --health-interval disable"
     " --health-retries 1 {image} " + LOOP, r"^rc=0\b"),
    ("unhealthy", "{engine} healthcheck run h1", r"^rc=1 unhealthy\b"),
    ("copied in", "{engine} cp {folder}/Containerfile h1:/healthy && {engine} exec h1 cat /healthy", r"^rc=0 FROM"),
    ("healthy", "{engine} healthcheck run h1 && {engine} inspect -f '{{{{.State.Healthcheck.Status}}}}' h1",
     r"^rc=0 healthy\b"),
    ("copied out", "{engine} cp h1:/healthy - | tar -tf -", r"^rc=0 healthy\b"),
    ("exec in the background", "{engine} exec -d h1 sh -c 'echo x >/behind' && sleep 1 && {engine} exec h1 cat /behind",
     r"^rc=0 \w+ x\b|^rc=0 x\b"),
    ("privileged exec", "{engine} exec --privileged h1 grep CapEff /proc/self/status", r"^rc=0 CapEff:\s*0+1f"),
    ("descriptors of exec", "{engine} exec --preserve-fds 1 h1 cat /proc/self/fd/3 3<{folder}/Containerfile",
     r"^rc=0 FROM"),
    ("columns of top", "{engine} top h1 pid user comm", r"^rc=0 PID\s+USER\s+COMMAND 1 root sh\b"),
    ("columns of stats", "{engine} stats --no-stream --format '{{{{.PIDs}}}} {{{{.MemUsage}}}}' h1",
     r"^rc=0 [1-9]\d* \d"),
    ("differences", "{engine} diff h1", r"^rc=0 .*A /healthy"),
    ("the log so far", "{engine} logs --tail 1 h1", r"^rc=0 started\b"),
    ("another network namespace's", "{engine} run --rm --network container:h1 --pid container:h1 {image} cat"
     " /proc/1/cmdline",
     r"^rc=0 .*started"),
    ("restart", "{engine} restart -t 0 h1 && {engine} exec h1 echo again", r"^rc=0 .*again\b"),
    ("gone", "{engine} rm -f -t 0 h1", r"^rc=0\b"),
)  # fmt: skip

NETWORK: tuple[Check, ...] = (
    ("the host's network", "{engine} run --rm --network host {image} ip -o link", r"^rc=0 .*\blo\b"),
    ("a network", "{engine} network create n1", r"^rc=0 n1\b"),
    ("a server", "{engine} run -d --network n1 --name web -p 8088:80 {image} sh -c"
     " 'mkdir /w; echo served >/w/f; httpd -f -h /w'", r"^rc=0\b"),
    ("on the bridge", "{engine} run --rm --network n1 {image} sh -c"
     " 'ip -o -4 addr show eth0; ip route; until wget -qO- http://web/f; do sleep 0.2; done'",
     r"^rc=0 .*10\.89\..*default via 10\.89\..*served\b"),
    ("published", "until busybox wget -qO- http://127.0.0.1:8088/f; do sleep 0.2; done", r"^rc=0 .*served\b"),
    ("no server", "{engine} rm -f -t 0 web && {engine} network rm n1", r"^rc=0\b"),
)  # fmt: skip

PODS: tuple[Check, ...] = (
    ("pod", "{engine} pod create --name p1 --infra=false", r"^rc=0\b"),
    ("a container in it", "{engine} run --rm {options} --pod p1 {image} echo in", r"^rc=0 in\b"),
    ("without the pod", "{engine} pod rm -f p1", r"^rc=0\b"),
    ("a pod that shares", "{engine} pod create --name p2 --network none --share net,ipc,uts,pid --hostname together",
     r"^rc=0\b"),
    ("the first", "{engine} run -d --pod p2 --name p2a {image} " + LOOP, r"^rc=0\b"),
    ("the second sees it", "{engine} run --rm --pod p2 {image} sh -c 'hostname; ps'",
     r"^rc=0 together (?=.*catatonit).*started"),
    ("all are paused", "{engine} pod pause p2 && {engine} inspect -f '{{{{.State.Status}}}}' p2a", r"^rc=0 .*paused\b"),
    ("and resumed", "{engine} pod unpause p2 && {engine} exec p2a echo awake", r"^rc=0 .*awake\b"),
    ("the pod's top", "{engine} pod top p2", r"^rc=0 .*catatonit.*sh"),
    ("the pod's stats", "{engine} pod stats --no-stream p2", r"^rc=0 .*p2a"),
    ("the pod is stopped", "{engine} pod stop -t 0 p2", r"^rc=0\b"),
    ("the pod is started", "{engine} pod start p2 && {engine} exec p2a echo again", r"^rc=0 .*again\b"),
    ("the pod goes", "{engine} pod rm -f -t 0 p2", r"^rc=0\b"),
    ("of Kubernetes' manifest", "{engine} kube play --network none {folder}/pod.yaml && {engine} logs played-one",
     r"^rc=0 .*out of yaml"),
    ("and down", "{engine} kube down {folder}/pod.yaml", r"^rc=0\b"),
)  # fmt: skip

PODMAN: tuple[Check, ...] = (
    *COMMON,
    ("a user namespace", "{run} --uidmap 0:100000:1000 {image} cat /proc/self/uid_map",
     r"^rc=0 \s*0\s+100000\s+1000\b"),
    ("init", "{run} --init {image} cat /proc/1/cmdline", r"^rc=0 .*(catatonit|init)"),
    ("a seccomp profile", "{run} --security-opt seccomp={folder}/seccomp.json {image} mkdir /x",
     r"^rc=1 .*Operation not permitted"),
    ("a limit of files", "{run} --ulimit nofile=77:77 --ulimit nproc=20000:20000 {image} sh -c 'ulimit -n'",
     r"^rc=0 77\b"),
    ("a umask", "{run} --umask 0027 {image} sh -c umask", r"^rc=0 0027\b"),
    ("groups", "{run} --group-add 33 {image} id -G", r"^rc=0 .*\b33\b"),
    ("privileged", "{run} --privileged {image} sh -c 'mount -t tmpfs x /mnt && echo done'", r"^rc=0 done\b"),
    ("a processor", "{run} --cpuset-cpus 0 {image} grep Cpus_allowed_list /proc/self/status", r"^rc=0 \S+\s+0$"),
    ("reservation and shares", "{run} --memory-reservation 32m --cpu-shares 512 {image} cat"
     " /sys/fs/cgroup/memory/memory.soft_limit_in_bytes /sys/fs/cgroup/cpu/cpu.shares", r"^rc=0 33554432 512\b"),
    ("a hook", "{run} --hooks-dir {folder}/hooks --annotation say={folder}/hooked {image} true && cat {folder}/hooked",
     r'^rc=0 .*"status": ?"creat'),
    ("a time limit", "{run} --timeout 1 {image} sleep 1000", r"^rc=(137|255)\b"),
    ("another root", "{run} --rootfs {folder}/root /bin/busybox echo hi", r"^rc=0 hi\b"),
    ("more descriptors", "{run} --preserve-fds 1 {image} cat /proc/self/fd/3 3<{folder}/Containerfile", r"^rc=0 FROM"),
    ("a parent", "{run} --cgroupns host --cgroup-parent /pyoci-parent {image} cat /proc/self/cgroup",
     r"^rc=0 .*/pyoci-parent/"),
    ("ready", "{engine} run -d --rm --sdnotify container {options} --name n1 {image} notify", r"^rc=0\b"),
    ("no readiness", "{run} --sdnotify ignore {image} notify", r"^rc=1 .*NOTIFY_SOCKET"),
    *VOLUMES,
    *HEALTH,
    *NETWORK,
    *PODS,
    ("build", "{engine} build -q --network none {ulimits} -t built {folder}", r"^rc=0\b"),
    ("what was built", "{engine} run --rm {options} localhost/built cat /made", r"^rc=0 made\b"),
    ("build with a runtime that fails", "{engine} --runtime /bin/false build -q --no-cache --network none"
     " {ulimits} {folder}",
     r"^rc=[1-9]"),
)  # fmt: skip

BUILDAH: tuple[Check, ...] = (
    ("build", "{engine} bud {ulimits} {options} -t built {folder}", r"^rc=0 .*Successfully tagged localhost/built"),
    ("it is the runtime that runs", "{engine} bud --no-cache {ulimits} {options} --runtime /bin/false {folder}",
     r"^rc=[1-9]"),
    ("a working container", "{engine} from --name w1 {ulimits} --pull-never localhost/built", r"^rc=0 w1\b"),
    ("what was built", "{engine} run {options} w1 cat /made", r"^rc=0 made\b"),
    ("exit status", "{engine} run {options} w1 sh -c 'exit 7'", r"^rc=7\b"),
    ("no such program", "{engine} run {options} w1 nonexistent", r"^rc=[1-9]\d* .*(not found|[nN]o such file)"),
    ("terminal", 'script -qec "{engine} run {options} -t w1 tty" /dev/null', r"^rc=0 .*/dev/pts/"),
    ("user", "{engine} run {options} --user 10:20 w1 id", r"^rc=0 uid=10\S* gid=20\b"),
    ("capabilities", "{engine} run {options} --cap-drop CAP_CHOWN w1 chown 1 /made",
     r"^rc=1 .*Operation not permitted"),
    ("volume", "{engine} run {options} -v {folder}:/v:ro w1 touch /v/x", r"^rc=1 .*Read-only file system"),
    ("what a run leaves", "{engine} run {options} w1 sh -c 'echo more >/more' && {engine} run {options} w1 cat /more",
     r"^rc=0 more\b"),
    ("committed", "{engine} commit -q w1 localhost/second && {engine} from --name w2 {ulimits} --pull-never"
     " localhost/second"
     " && {engine} run {options} w2 cat /more", r"^rc=0 .*\bmore\b"),
    ("chosen namespaces", "{engine} run {options} --pid host --ipc host w1 true", r"^rc=0\b"),
    ("remove", "{engine} rm -a", r"^rc=0\b"),
)  # fmt: skip

ROOTLESS: tuple[Check, ...] = (
    ("run", "{run} {image} sh -c 'id -u; cat /proc/self/uid_map'", r"^rc=0 0 +0 4323 1 1 2000000 65536$"),
    ("exit status", "{run} {image} sh -c 'exit 7'", r"^rc=7\b"),
    ("no such program", "{run} {image} nonexistent", r"^rc=127\b"),
    ("terminal", 'script -qec "{run} -it {image} tty" /dev/null', r"^rc=0 .*/dev/pts/0"),
    ("one's own id", "{run} --userns keep-id {image} id -u", r"^rc=0 4323$"),
    ("another map", "{run} --uidmap 0:1:1000 {image} cat /proc/self/uid_map", r"^rc=0 0 1 1000$"),
    ("user", "{run} --user 10:20 {image} id", r"^rc=0 uid=10\S* gid=20\b"),
    ("a device by bind mount", "{run} {image} sh -c 'echo x >/dev/null; grep \" /dev/null \" /proc/mounts'",
     r"^rc=0 .*/dev/null "),
    ("cgroups are not to be written", "{run} {image} sh -c 'mkdir /sys/fs/cgroup/pids/x'", r"^rc=1\b"),
    ("nor the host's", "{run} --cgroupns host {image} sh -c 'mkdir /sys/fs/cgroup/pids/x'", r"^rc=1\b"),
    ("read-only", "{run} --read-only {image} touch /x", r"Read-only file system"),
    ("volume", "{run} -v {folder}:/v:ro {image} sh -c 'stat -c %u /v; touch /v/x'", r"^rc=1 0 .*Read-only file system"),
    ("seccomp", "{run} {image} grep Seccomp: /proc/self/status", r"^rc=0 Seccomp:\s*2\b"),
    ("a group's file", "{run} -v {folder}:/v:ro {image} cat /v/shared", r"^rc=1 .*Permission denied"),
    ("groups that are kept", "{run} --group-add keep-groups -v {folder}:/v:ro {image} cat /v/shared",
     r"^rc=0 group's$"),
    ("by exec, too", "{engine} run -d {options} --group-add keep-groups -v {folder}:/v:ro --name k1 {image} " + LOOP
     + " && {engine} exec k1 cat /v/shared; {engine} rm -f -t 0 k1", r"^rc=0 \S+ group's\b"),
    ("in the background", "{engine} run -d {options} --name c1 {image} " + LOOP, r"^rc=0\b"),
    ("exec", "{engine} exec c1 echo inside", r"^rc=0 inside\b"),
    ("exec on a terminal", "script -qec \"{engine} exec -it c1 tty\" /dev/null", r"^rc=0 .*/dev/pts/"),
    ("logs", "{engine} logs c1", r"^rc=0 started\b"),
    ("top", "{engine} top c1", r"^rc=0 .*sh"),
    ("stop", "{engine} stop -t 1 c1", r"^rc=0\b"),
    ("start again", "{engine} start c1 && {engine} exec c1 echo again", r"^rc=0 .*again\b"),
    ("kill", "{engine} kill -s KILL c1", r"^rc=0\b"),
    ("remove", "{engine} rm -f c1", r"^rc=0\b"),
    ("build", "{engine} build -q --network none {ulimits} -t built {folder}", r"^rc=0\b"),
    ("what was built", "{run} localhost/built cat /made", r"^rc=0 made\b"),
)  # fmt: skip
