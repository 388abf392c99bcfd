"""``python -m intermediate_server`` is ``intermediate-server``."""

import sys

from intermediate_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
