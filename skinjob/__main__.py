"""`python -m skinjob` is `skinjob`."""

from skinjob.cli import main

if __name__ == "__main__":
    main()
