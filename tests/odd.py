"""Containers on a host that root has made odd before, or of a caller that is."""

from __future__ import annotations

import subprocess
from typing import Any

from containers import COMMAND, LIMIT, Box

Done = subprocess.CompletedProcess[str]


def there(
    box: Box,
    before: str = "",
    script: str = "echo inside",
    *,
    prefix: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    root: bool = True,
) -> Done:
    """`run` of a container with the shell `script`."""
    box.process["args"] = ["sh", "-c", script]
    box.write()
    state = ["--root", str(box.states)] if root else []
    words = [*prefix, *COMMAND, *state, "run", *options, "--bundle", str(box.bundle), box.id]
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{before}\nexec "$@"', "sh", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def works(box: Box, *args: Any, **more: Any) -> str:
    """What the container of `there` prints."""
    done = there(box, *args, **more)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(box: Box, *args: Any, **more: Any) -> str:
    """The one line of a container that cannot be made, of which nothing is left."""
    done = there(box, *args, **more)
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("pyoci run failed: "), done.stderr
    assert "internal error" not in done.stderr
    box.gone()
    return done.stderr
