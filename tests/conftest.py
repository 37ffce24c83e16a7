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


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """A folder like the bundled base, with a far smaller model that has learnt nothing: for mechanics, in seconds."""
    from rftkit.policy import write_hashes
    from rftkit.pretrain import Recipe, build_model, build_processor

    folder = tmp_path_factory.mktemp("base")
    processor = build_processor()
    recipe = Recipe(
        hidden=64, layers=2, heads=2, kv_heads=1, mlp=64, vision_hidden=32, vision_blocks=2
    )  # NF4 wants 32s
    build_model(recipe, processor, 0).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_hashes(folder)
    return folder


@pytest.fixture
def small_preset(small_base):
    from rftkit.config import get_preset

    return get_preset(
        "tiny",
        model=str(small_base),
        max_completion=12,
        rft_prompts=4,
        rft_group=4,
        sft_batch=4,
        eval_n=6,
        eval_batch=6,
        train_n=64,
    )


@pytest.fixture(autouse=True)
def no_autocast_is_left_on():
    """One test once left bfloat16 on for all that came after it."""
    yield
    import torch

    left = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    assert not left, "this test leaves autocast on: switch it off at its end"
