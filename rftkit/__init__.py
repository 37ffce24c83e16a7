"""rftkit: watch a small vision-language model learn a new task and forget its old ones, and compare SFT with RFT."""

import logging

from rftkit.config import Preset, UserError, get_preset

__version__ = "0.1.0"
__all__ = ["Preset", "UserError", "__version__", "get_preset"]

# on some CPUs it offers a faster 4-bit kernel from the Hub at every import: nothing a reader could act on
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
