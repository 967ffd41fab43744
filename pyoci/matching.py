"""--regex of kill and delete: many containers at once."""

from __future__ import annotations

from pyoci import log
from pyoci.errors import Foreign, NotFound, PyociError, UsageError, WrongState
from pyoci.state import ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def each(root: str, pattern: str, do: Callable[[str], None]) -> None:
    """`do(id)` for every container with a match of `pattern` in its ID.

    All are tried.  That one does not fit is a warning; any other failure is the command's, once all have had their
    turn.
    """
    import re

    try:
        wanted = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"--regex {pattern!r}: not a regular expression: {error}") from None
    first: PyociError | None = None
    try:
        names = ids(root)
    except FileNotFoundError:
        return
    for name in names:
        if not wanted.search(name):
            continue
        try:
            do(name)
        except (NotFound, Foreign):
            pass  # deleted by somebody else between listing and looking, or never ours
        except WrongState as error:
            log.warning(str(error))
        except PyociError as error:
            if first is not None:
                log.warning(str(error))
            first = first or error
    if first is not None:
        raise first
