import pytest

from rftkit.config import PRESETS, UserError, get_preset


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("huge", {}, "no preset 'huge'"),
        ("tiny", {"learning_rate": 1e-3}, "no field 'learning_rate'"),
        ("tiny", {"name": "mine"}, "no field 'name'"),
        ("tiny", {"sft_lr": 0.0}, "not a learning rate"),
        ("tiny", {"sft_lr": "fast"}, "must be float"),
        ("tiny", {"rft_group": 1}, "at least 2"),
        ("tiny", {"rft_group": True}, "must be int"),
        ("tiny", {"rows": 1, "cols": 1}, "nothing to shuffle"),
        ("tiny", {"quantize": "int3"}, "choose one of none, nf4"),
        ("tiny", {"kl_beta": -0.1}, "KL coefficient"),
    ],
)
def test_bad_settings_get_one_sentence(name, overrides, says):
    with pytest.raises(UserError) as caught:
        get_preset(name, **overrides)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text and text.endswith(".")


def test_overrides_and_int_for_float():
    preset = get_preset("tiny", kl_beta=1, eval_n=7)
    assert preset.kl_beta == 1.0 and isinstance(preset.kl_beta, float) and preset.eval_n == 7
    assert PRESETS["tiny"].eval_n != 7  # the shared preset is untouched


def test_every_preset_passes_its_own_check():
    for name in PRESETS:
        assert get_preset(name).name == name
