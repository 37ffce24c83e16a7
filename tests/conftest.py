"""The tests run without a network unless RFTKIT_HUB=1, and those that need a GPU are skipped where there is none."""

import os

import pytest

HUB = os.environ.get("RFTKIT_HUB") == "1"
if not HUB:  # before anything imports huggingface_hub, which reads these once
    os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("hub") and not HUB:
            item.add_marker(pytest.mark.skip(reason="downloads from the Hub: set RFTKIT_HUB=1"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu():
    import torch

    return torch.cuda.is_available()
