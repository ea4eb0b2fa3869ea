"""Which files hold networks, what is in them, and how do they go back to disk?"""

from metanet.checkpoint.architecture import Architecture

__all__ = ["Architecture"]
