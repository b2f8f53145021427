"""`python -m streamwise` is the command `streamwise`."""

from streamwise.cli import main

if __name__ == "__main__":
    main()
