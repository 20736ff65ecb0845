"""`python -m halfseen` is the command `halfseen`."""

from halfseen.cli.main import main

if __name__ == "__main__":
    main()
