#!/bin/sh
# A machine of its own for one of podman's test files, made of namespaces:
#
#     inside.sh FOLDER NAME COMMAND...
#
# NAME is a cgroup that is made in every hierarchy of cgroup v1, and is their root for what runs here; FOLDER has
# etc/, which is seen at /etc/containers, subuid and subgid.  When the command has ended, so has everything else.
set -eu
folder=$1 name=$2
shift 2

if [ "$name" != - ]; then
    # first in the machine's own namespaces
    sed 's/^[0-9]*:\([^:]*\):/\1 /' /proc/self/cgroup | while read -r controllers path; do
        place=/sys/fs/cgroup/${controllers#name=}$path/$name
        case $controllers in /*) continue ;; esac
        mkdir "$place"
        if [ "$controllers" = cpuset ]; then
            for what in cpus mems; do cat "$place/../cpuset.$what" >"$place/cpuset.$what"; done
        fi
        echo $$ >"$place/cgroup.procs"
    done
    exec unshare --mount --net --pid --ipc --cgroup --fork --kill-child --mount-proc --propagation private \
        "$0" "$folder" - "$@"
fi

layout=$(sed -n 's/^[0-9]*:\([^:]\+\):.*/\1/p' /proc/self/cgroup)
umount -R /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for controllers in $layout; do
    mkdir "/sys/fs/cgroup/${controllers#name=}"
    mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#name=}"
done
# a /dev of its own too, for a log that netavark wants and complains about
mount -t tmpfs tmpfs /run
mkdir /run/dev
mount --rbind /dev /run/dev
mount -t tmpfs -o mode=755 tmpfs /dev
cp -ax /run/dev/. /dev/
for place in pts mqueue; do
    if mountpoint -q "/run/dev/$place"; then mount --bind "/run/dev/$place" "/dev/$place"; fi
done
umount -l /run/dev
mkdir -p /dev/shm
for place in /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$place"; done
mount --bind "$folder/etc" /etc/containers
for file in subuid subgid; do mount --bind "$folder/$file" "/etc/$file"; done
ip link set lo up
rm -f /dev/log
socat -u UNIX-RECV:/dev/log OPEN:/dev/null 2>/dev/null &
exec "$@"
