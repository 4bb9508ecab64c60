"""The program: `optimize`, and `python -m optimize` where its script is not on the path."""

import sys


def main() -> None:
    """The command line; Ctrl-C while it is still being imported is no traceback."""
    try:
        from optimize.cli.app import main as run
    except KeyboardInterrupt:  # before any command
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
