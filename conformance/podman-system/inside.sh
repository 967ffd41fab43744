#!/bin/sh
# What one of podman's test files may change of a machine, its own in these namespaces (../inside.sh):
#
#     inside.sh FOLDER COMMAND...
#
# FOLDER has etc/, which is seen at /etc/containers, subuid and subgid.
set -eu
folder=$1
shift

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
rm -f /dev/log
socat -u UNIX-RECV:/dev/log OPEN:/dev/null 2>/dev/null &
exec "$@"
