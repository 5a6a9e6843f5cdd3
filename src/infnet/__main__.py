"""``python -m infnet``."""

from infnet.cli import main

main()
