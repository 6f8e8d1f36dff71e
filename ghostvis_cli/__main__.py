"""``python -m ghostvis_cli`` is ``ghostvis``."""

from .app import main

main()
