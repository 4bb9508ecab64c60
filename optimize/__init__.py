"""optimize: shrink trained diffusion models with composable passes, prove what it cost, export what a server loads."""

from __future__ import annotations

__version__ = "0.1.0"
