"""Gradient noise, stability and critical batch size of PyTorch models, with error bars.

The public names are those of `__init__.pyi`. Each loads on first use (SPEC 1), so that importing
one part of the package does not load torch for another.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
