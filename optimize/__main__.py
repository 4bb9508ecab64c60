"""`python -m optimize`: the command line where its script is not on the path."""

from optimize.cli.app import main

if __name__ == "__main__":
    main()
