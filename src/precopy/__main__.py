"""``python -m precopy`` is the ``precopy`` command."""

from precopy.cli.main import main

if __name__ == "__main__":
    main()
