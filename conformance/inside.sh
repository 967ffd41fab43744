#!/bin/sh
# A machine of its own for one file of somebody's tests, made of namespaces:
#
#     inside.sh v1|v2|machine NAME COMMAND...
#
# With v1 and v2, NAME is a cgroup that is made in every hierarchy of that version, and is their root for what runs here;
# the other version is not there, nor is a hierarchy of v1 that is alive but mounted nowhere: a group that somebody left
# in it keeps it so.  "machine" leaves cgroups as they are, for a machine of one's own.  When the command has ended, so
# has everything else.
set -eu
layout=$1 name=$2
shift 2

if [ "$layout" = machine ]; then
    exec unshare --mount --net --propagation private sh -ec 'ip link set lo up; exec "$@"' sh "$@"
fi

if [ "$name" != - ]; then
    # first in the machine's own namespaces
    cut -d: -f2- /proc/self/cgroup | tr : ' ' | while read -r controllers path; do
        case $layout$controllers in
            v1/*) continue ;;
            v2/*)
                path=$controllers base=/sys/fs/cgroup
                if mountpoint -q $base/unified; then base=$base/unified; fi
                ;;
            v1*)
                base=/sys/fs/cgroup/${controllers#name=}
                if ! mountpoint -q "$base"; then continue; fi
                ;;
            *) continue ;;
        esac
        place=$base$path/$name
        mkdir "$place"
        if [ "$controllers" = cpuset ]; then
            for what in cpus mems; do cat "$place/../cpuset.$what" >"$place/cpuset.$what"; done
        fi
        # where the scheduler has groups with real time, a new one has none of it
        if [ -e "$place/cpu.rt_runtime_us" ]; then echo 250000 >"$place/cpu.rt_runtime_us" || :; fi
        echo $$ >"$place/cgroup.procs"
    done
    exec unshare --mount --net --pid --ipc --cgroup --fork --kill-child --mount-proc --propagation private \
        "$0" "$layout" - "$@"
fi

layouts=$(sed -n 's/^[0-9]*:\([^:]\+\):.*/\1/p' /proc/self/cgroup | while read -r controllers; do
    if mountpoint -q "/sys/fs/cgroup/${controllers#name=}"; then echo "$controllers"; fi
done)
umount -R /sys/fs/cgroup
if [ "$layout" = v2 ]; then
    # without options: they would be those of the whole machine
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # a group with processes of its own has no controllers for others
    mkdir /sys/fs/cgroup/tests
    for process in $(cat /sys/fs/cgroup/cgroup.procs); do
        # cat itself has ended
        { echo "$process" >/sys/fs/cgroup/tests/cgroup.procs; } 2>/dev/null || :
    done
else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for controllers in $layouts; do
        mkdir "/sys/fs/cgroup/${controllers#name=}"
        mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#name=}"
    done
fi
ip link set lo up
exec "$@"
