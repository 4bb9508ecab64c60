"""`python -m optimize`: the command line where its script is not on the path."""

import sys

if __name__ == "__main__":
    try:
        from optimize.cli.app import main
    except KeyboardInterrupt:  # before any command
        sys.exit(130)
    main()
