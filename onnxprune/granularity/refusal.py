"""What says that an edit cannot be made."""

from __future__ import annotations


class RefusalError(Exception):
    """An edit that cannot be made, and why."""
