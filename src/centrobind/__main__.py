"""`python -m centrobind` is the command line."""

from centrobind.cli.main import main

if __name__ == "__main__":
    main()
