"""What is asked of each engine, and what must come back: (name, words, pattern), the same for every runtime.

Words are formatted with what the engine's class offers (`{run}`, `{engine}`, ...); patterns are searched in
"rc=STATUS OUTPUT", with line breaks as spaces.
"""

from __future__ import annotations

Check = tuple[str, str, str]

LOOP = "sh -c 'echo started; while :; do sleep 0.1; done'"
EAT = "sh -c 'x=$(head -c 80000000 /dev/zero | tr \"\\0\" x); echo ${{#x}}'"
# ctr gives up its fifos when a process has ended, also those that a thread of its has not got round to opening since
# the shim did, which is after the runtime has returned: of a process that ends sooner it shows nothing in one of some
# 200 cases, with every runtime.
SAY = "sh -c 'echo inside; sleep 0.1'"
V1_MEMORY = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
# What stands for these files where there is v2 alone; what is looked for in them fits both.
V2_FILES = {
    "memory/memory.limit_in_bytes": "memory.max",
    "pids/pids.max": "pids.max",
    "cpu/cpu.cfs_quota_us": "cpu.max",
}

COMMON: tuple[Check, ...] = (
    ("run", "{run} {image} echo hi", r"^rc=0 hi\b"),
    ("exit status", "{run} {image} sh -c 'exit 7'", r"^rc=7\b"),
    ("no such program", "{run} {image} nonexistent", r"^rc=127\b"),
    ("a file that is no program", "{run} {image} /etc/passwd", r"^rc=126\b"),
    ("user", "{run} --user 10:20 {image} id", r"^rc=0 uid=10\S* gid=20\b"),
    ("working directory", "{run} -w /tmp {image} pwd", r"^rc=0 /tmp\b"),
    ("environment", "{run} -e A=b {image} env", r"^rc=0 .*\bA=b\b"),
    ("memory", "{run} --memory 64m {image} cat " + V1_MEMORY, r"^rc=0 67108864\b"),
    ("memory bites", "{run} --memory 20m {image} " + EAT, r"^rc=137\b"),
    ("processes", "{run} --pids-limit 5 {image} cat /sys/fs/cgroup/pids/pids.max", r"^rc=0 5\b"),
    ("processors", "{run} --cpus 0.5 {image} cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us", r"^rc=0 50000\b"),
    ("read-only", "{run} --read-only {image} touch /x", r"Read-only file system"),
    ("tmpfs", "{run} --tmpfs /t {image} sh -c 'touch /t/x && stat -f -c %T /t'", r"^rc=0 tmpfs\b"),
    ("a tmpfs over files", "{run} --tmpfs /etc {image} touch /etc/x", r"^rc=0\b"),
    ("capabilities", "{run} --cap-drop ALL --cap-add NET_BIND_SERVICE {image} grep CapEff /proc/self/status",
     r"^rc=0 CapEff:\s*0{13}400\b"),
    ("no new privileges", "{run} --security-opt no-new-privileges {image} grep NoNewPrivs /proc/self/status",
     r"^rc=0 NoNewPrivs:\s*1\b"),
    ("seccomp", "{run} {image} grep Seccomp: /proc/self/status", r"^rc=0 Seccomp:\s*2\b"),
    ("no seccomp", "{run} --security-opt seccomp=unconfined {image} grep Seccomp: /proc/self/status",
     r"^rc=0 Seccomp:\s*0\b"),
    ("volume", "{run} -v {folder}:/v:ro {image} sh -c 'ls /v; touch /v/x'", r"^rc=1 .*Read-only file system"),
    ("sysctl", "{run} --sysctl net.ipv4.ip_forward=1 {image} cat /proc/sys/net/ipv4/ip_forward", r"^rc=0 1\b"),
    ("device", "{run} --device /dev/fuse {image} ls /dev/fuse", r"^rc=0 /dev/fuse\b"),
    ("host name", "{run} --hostname hosty {image} hostname", r"^rc=0 hosty\b"),
    ("the host's pids", "{run} --pid host {image} true", r"^rc=0\b"),
    ("the host's ipc and uts", "{run} --ipc host --uts host {image} true", r"^rc=0\b"),
    ("terminal", 'script -qec "{run} -it {image} tty" /dev/null', r"^rc=0 .*/dev/pts/0"),
    ("in the background", "{engine} run -d {options} --name c1 {image} " + LOOP, r"^rc=0\b"),
    ("exec", "{engine} exec c1 echo inside", r"^rc=0 inside\b"),
    ("exec's status", "{engine} exec c1 sh -c 'exit 5'", r"^rc=5\b"),
    ("exec of nothing", "{engine} exec c1 nonexistent", r"^rc=12[67]\b"),
    ("exec as a user", "{engine} exec -u 5 c1 id", r"^rc=0 uid=5\b"),
    ("exec on a terminal", "script -qec \"{engine} exec -it c1 tty\" /dev/null", r"^rc=0 .*/dev/pts/"),
    ("logs", "{engine} logs c1", r"^rc=0 started\b"),
    ("pause", "{engine} pause c1", r"^rc=0\b"),
    ("paused", "{engine} inspect -f '{{{{.State.Status}}}}' c1", r"^rc=0 paused\b"),
    ("unpause", "{engine} unpause c1", r"^rc=0\b"),
    ("stats", "{engine} stats --no-stream c1", r"^rc=0 .*c1"),
    ("top", "{engine} top c1", r"^rc=0 .*sh"),
    ("copy", "{engine} cp /etc/hostname c1:/tmp/h", r"^rc=0\b"),
    ("stop", "{engine} stop -t 1 c1", r"^rc=0\b"),
    ("stopped how", "{engine} inspect -f '{{{{.State.ExitCode}}}}' c1", r"^rc=0 137\b"),
    ("start again", "{engine} start c1", r"^rc=0\b"),
    ("kill", "{engine} kill -s KILL c1", r"^rc=0\b"),
    ("remove", "{engine} rm -f c1", r"^rc=0\b"),
)  # fmt: skip

DOCKER: tuple[Check, ...] = (
    *COMMON,
    ("init", "{run} --init {image} true", r"^rc=0\b"),
    ("privileged", "{run} --privileged {image} true", r"^rc=0\b"),
    ("to be updated", "{engine} run -d {options} --name u1 {image} " + LOOP, r"^rc=0\b"),
    ("update", "{engine} update --memory 128m --memory-swap 128m --pids-limit 50 u1", r"^rc=0\b"),
    ("updated", "{engine} exec u1 cat " + V1_MEMORY + " /sys/fs/cgroup/pids/pids.max", r"^rc=0 134217728 50\b"),
    ("away", "{engine} rm -f u1", r"^rc=0\b"),
    ("to be killed", "{engine} run -d {options} --name o1 --memory 20m {image} " + EAT, r"^rc=0\b"),
    ("waited for", "{engine} wait o1", r"^rc=0 137\b"),
    ("killed for its memory", "{engine} inspect -f '{{{{.State.OOMKilled}}}}' o1", r"^rc=0 true\b"),
    ("gone", "{engine} rm -f o1", r"^rc=0\b"),
)

CONTAINERD: tuple[Check, ...] = (
    ("run", "{run} {image} a1 echo hi", r"^rc=0 hi\b"),
    ("exit status", "{run} {image} a2 sh -c 'exit 7'", r"^rc=7\b"),
    ("no such program", "{run} {image} a3 nonexistent", r"^rc=1 .*executable file not found"),
    ("in the background", "{engine} run -d {options} {image} b1 " + LOOP, r"^rc=0\b"),
    ("exec", "{engine} task exec --exec-id e1 b1 " + SAY, r"^rc=0 inside\b"),
    ("running", "{engine} task ls", r"^rc=0 .*b1\s+\d+\s+RUNNING"),
    ("processes", "{engine} task ps b1", r"^rc=0 .*\d"),
    ("pause", "{engine} task pause b1", r"^rc=0\b"),
    ("paused", "{engine} task ls", r"^rc=0 .*PAUSED"),
    ("resume", "{engine} task resume b1", r"^rc=0\b"),
    ("metrics", "{engine} task metrics b1", r"^rc=0 .*memory"),
    ("kill", "{engine} task kill -s KILL b1", r"^rc=0\b"),
    ("ended", "until {engine} task ls | grep -q STOPPED; do sleep 0.1; done; {engine} task delete b1",
     r"^rc=137\b|^rc=0\b|^rc=1 .*137"),
    ("remove", "{engine} container rm b1", r"^rc=0\b"),
)
