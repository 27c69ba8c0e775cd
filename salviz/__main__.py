"""`python -m salviz`: the command line."""

from salviz.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
