"""`python -m latentwire`."""

import sys

from .server.cli import main

sys.exit(main())
