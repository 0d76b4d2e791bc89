"""The command line, which needs the extra ``cli``."""

from __future__ import annotations

import gc
import sys

_NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line.

    :raises SystemExit: with the exit code that the page on the command line documents
    """
    # What is imported is kept until the exit. Looking for garbage in it would take longer than most
    # commands. A command turns the collector on again.
    gc.disable()
    try:
        from ._cli.app import run  # noqa: PLC0415 - the library itself does without the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.exit(f"aimagestore: {error.name} is missing: pip install 'aimagestore[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        run()
    finally:
        gc.freeze()  # the interpreter would look for garbage at its exit


if __name__ == "__main__":
    main()
