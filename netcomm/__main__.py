"""`python -m netcomm` is `netcomm`."""

from netcomm.cli import main

if __name__ == "__main__":
    main()
