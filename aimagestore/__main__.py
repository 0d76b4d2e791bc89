"""The command line, which needs the extra ``cli``."""

from __future__ import annotations

import sys

_NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line.

    :raises SystemExit: with the exit code that the page on the command line documents
    """
    try:
        from ._cli.app import run  # noqa: PLC0415 - the library itself does without the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.exit(f"aimagestore: {error.name} is missing: pip install 'aimagestore[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
