"""rftkit: watch a small vision-language model learn a new task and forget its old ones, and compare SFT with RFT."""

from rftkit.config import Preset, UserError, get_preset

__version__ = "0.1.0"
__all__ = ["Preset", "UserError", "__version__", "get_preset"]
