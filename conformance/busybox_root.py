"""The root of a small distribution for test suites: a static busybox, and files that programs look for."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

FOLDERS = (
    "dev", "home", "lib", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr/local/bin", "var/tmp",
)  # fmt: skip
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/sbin/nologin\n"
    "daemon:x:2:2:daemon:/sbin:/sbin/nologin\nmail:x:8:12:mail:/var/mail:/sbin/nologin\n"
    "www-data:x:33:33:www-data:/var/www:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "etc/group": "root:x:0:root\nbin:x:1:root,bin,daemon\ndaemon:x:2:root,bin,daemon\nmail:x:12:mail\n"
    "www-data:x:33:\nnobody:x:65534:\n",
    "etc/os-release": 'NAME="stand-in"\nID=stand-in\nVERSION_ID=1\n',
    "etc/alpine-release": "0\n",
    "etc/issue": "stand-in\n",
    "etc/services": "http 80/tcp\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "localhost\n",
}
# What Debian's busybox lacks; awk adds no variables of its own, as a shell would.
PROGRAMS = {
    "bin/printenv": "#!/usr/bin/awk -f\n"
    "BEGIN {\n"
    "  for (i = 1; i < ARGC; i++) if (ARGV[i] in ENVIRON) print ENVIRON[ARGV[i]]\n"
    '  if (ARGC == 1) for (name in ENVIRON) print name "=" ENVIRON[name]\n'
    "}\n",
    "bin/pgrep": "#!/bin/sh\nexec pidof -- \"$1\"\n",
    "bin/ipcs": "#!/bin/sh\ncat /proc/sysvipc/shm\n",
}


def archive(
    files: dict[str, str] | None = None,
    programs: dict[str, str] | None = None,
    date: int = 0,
    setuid: dict[str, bytes] | None = None,
    whole: bool = True,
) -> bytes:
    """A tar archive of it, with more files (path -> content; "-> " before a link's target) or others, of that date; of
    these alone unless it is to be the `whole`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        made: set[str] = set()

        def folder(path: str) -> None:
            if path in ("", ".") or path in made:
                return
            folder(str(Path(path).parent))
            made.add(path)
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o1777 if path.endswith("tmp") else 0o755, date
            tar.addfile(entry)

        def file(path: str, data: bytes, mode: int) -> None:
            folder(str(Path(path).parent))
            entry = tarfile.TarInfo(path)
            entry.mode, entry.mtime = mode, date
            if data.startswith(b"-> "):
                entry.type, entry.linkname, data = tarfile.SYMTYPE, data[3:].decode(), b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        if whole:
            for path in FOLDERS:
                folder(path)
            file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
            listed = subprocess.run(["/bin/busybox", "--list-full"], check=True, capture_output=True, text=True).stdout
            for path in listed.split():
                if path not in ("bin/busybox", "linuxrc"):
                    # not symbolic ones: what is done to one program (a mask, a mode) is not done to all
                    folder(str(Path(path).parent))
                    entry = tarfile.TarInfo(path)
                    entry.type, entry.linkname, entry.mode, entry.mtime = tarfile.LNKTYPE, "bin/busybox", 0o755, date
                    tar.addfile(entry)
        for path, text in {**(FILES if whole else {}), **(files or {})}.items():
            file(path, text.encode(), 0o644)
        for path, text in {**(PROGRAMS if whole else {}), **(programs or {})}.items():
            file(path, text.encode(), 0o755)
        for path, data in (setuid or {}).items():
            file(path, data, 0o4755)
    return out.getvalue()
