"""INFaaS: a model-less inference gateway. This package is the kernel that every component shares."""

from __future__ import annotations

__version__ = "0.1.0"
