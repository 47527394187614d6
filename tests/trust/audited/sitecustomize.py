"""Python reads this by itself where the folder is on PYTHONPATH: a server in its own process is watched, too."""

from latentwire.tests.trust import audit

audit.install()
