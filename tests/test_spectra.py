import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from rftkit import spectra
from rftkit.__main__ import main
from rftkit.config import UserError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gauss(*shape, seed=0, std=1.0):
    return std * torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def basis(n, k, seed=0):
    return torch.linalg.qr(gauss(n, k, seed=seed)).Q


def spectrum(m, n, s, seed=0):
    """A matrix with the given singular values."""
    return basis(m, len(s), seed) * torch.as_tensor(s, dtype=torch.float64) @ basis(n, len(s), seed + 1).T


def relative(a, b):
    return float((a - b).norm() / b.norm())


# --- angles ----------------------------------------------------------------------------------------------------------------

KNOWN = [0.0, 1e-12, 1e-9, 1e-5, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2]


def naive_angles(a, b):
    return torch.linalg.svdvals(a.float().T @ b.float()).clamp(max=1).acos().sort().values


@pytest.mark.parametrize("extra", [0, 3])
def test_known_angles_come_back_near_zero_and_near_a_right_angle(extra):
    """b_i = cos t_i a_i + sin t_i c_i in a random orthonormal frame, then both bases are mixed by rotations."""
    t, frame = torch.tensor(KNOWN, dtype=torch.float64), basis(40, 30)
    a, c = frame[:, :9], frame[:, 9:18]
    b = (a * t.cos() + c * t.sin()) @ basis(9, 9, 1)
    wide = torch.cat([a, frame[:, 20 : 20 + extra]], 1) @ basis(9 + extra, 9 + extra, 2)
    for found in (spectra.principal_angles(wide, b), spectra.principal_angles(b, wide)):
        torch.testing.assert_close(found, t, rtol=1e-6, atol=1e-14)


def test_arccos_in_float32_has_a_floor_that_the_sines_have_not():
    a = basis(512, 96)
    same = a @ basis(96, 96, 1)
    assert 1e-4 < float(naive_angles(a, same).max()) < 5e-3
    assert float(spectra.principal_angles(a, same).max()) < 1e-13
    assert float(spectra.principal_angles(a.float(), same.float()).max()) < 1e-5


@pytest.mark.parametrize(
    "bad", [lambda a: 1.001 * a, lambda a: a[:, [0, 0]], lambda a: a * math.nan, lambda a: a[:-1], lambda a: a[0]]
)
def test_bases_that_are_none_are_refused(bad):
    a = basis(10, 3)
    with pytest.raises(UserError):
        spectra.principal_angles(a, bad(a))


@pytest.mark.parametrize(("n", "k", "l", "zeros"), [(10, 7, 6, 3), (10, 5, 5, 0), (8, 8, 3, 3)])
def test_trivial_zeros_are_those_of_random_subspaces(n, k, l, zeros):  # noqa: E741
    assert spectra.trivial_zeros(n, k, l) == zeros
    angles = spectra.principal_angles(basis(n, k), basis(n, l, 1))
    assert int((angles < 1e-7).sum()) == zeros
    with pytest.raises(UserError, match="do not fit"):
        spectra.trivial_zeros(n, n + 1, 1)


def test_chance_level():
    """The figures of the fact sheet, and the mean over draws of what is exact at every n."""
    degrees = [math.degrees(spectra.chance_angles(4096, k).smallest) for k in (512, 768, 1024)]
    np.testing.assert_allclose(degrees, [48.6, 38.7, 30.0], atol=0.05)
    for n, k in ((12, 3), (12, 6), (12, 9)):
        drawn = spectra.simulate_chance(n, k, 400, seed=1)
        assert drawn.shape == (400, k)
        assert float(drawn.sin().square().mean().sqrt()) == pytest.approx(spectra.chance_angles(n, k).chordal, rel=0.03)
    smallest = spectra.simulate_chance(400, 50, 3, seed=2)[:, 0].mean()
    assert float(smallest) == pytest.approx(spectra.chance_angles(400, 50).smallest, rel=0.05)
    assert spectra.chance_angles(10, 6).smallest == 0
    assert torch.equal(spectra.simulate_chance(9, 2, 2, 5), spectra.simulate_chance(9, 2, 2, 5))


def test_a_summary_leaves_the_trivial_zeros_out():
    angles = spectra.simulate_chance(60, 40, 1, seed=3)[0]
    got = spectra.summary(angles, 60)
    assert got.chordal == pytest.approx(math.sqrt(40 / 60), rel=0.03)
    assert got.median > 0.3 and got.largest == float(angles[-1])
    with pytest.raises(UserError, match="all of R\\^40"):
        spectra.summary(angles, 40)


# --- Marchenko-Pastur --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(300, 300), (200, 700), (700, 200)])
def test_the_law_of_simulated_matrices(m, n):
    law = spectra.marchenko_pastur(m, n, 0.02)
    s = torch.linalg.svdvals(gauss(m, n, std=0.02)).numpy()[::-1]
    shares = (np.arange(len(s)) + 0.5) / len(s)
    assert np.abs(law.quantiles(shares) - s).max() < 0.02 * s.max()
    grid = np.linspace(law.edges[0] + 1e-9, law.edges[1], 200_001)
    mass = np.cumsum(law.density(grid)) * (grid[1] - grid[0])
    assert mass[-1] == pytest.approx(1, abs=1e-3)
    assert np.interp(0.3, mass, grid) == pytest.approx(float(law.quantiles(0.3)), rel=1e-2)


def test_the_figures_of_the_fact_sheet():
    """i.i.d. N(0, 0.02^2): upper edge 2.560 for 4096 x 4096."""
    assert spectra.marchenko_pastur(4096, 4096, 0.02).edges == (0, pytest.approx(2.560))
    with pytest.raises(UserError):
        spectra.marchenko_pastur(4, 4, 0.0)


@pytest.mark.parametrize("shape", [(64, 64), (96, 192), (256, 100)])
def test_an_initialised_matrix_is_told_from_a_trained_one(shape):
    for seed in range(5):
        noise = gauss(*shape, seed=seed, std=0.02)
        fit = spectra.looks_untrained(torch.linalg.svdvals(noise), shape)
        assert fit.verdict == "untrained"
        assert fit.std == pytest.approx(0.02, rel=0.02)
        assert fit.top == pytest.approx(fit.edge, rel=0.1)
        spike = noise + spectrum(*shape, [1.5 * fit.edge], seed)
        assert spectra.looks_untrained(torch.linalg.svdvals(spike), shape).verdict == "trained"
        decay = spectrum(*shape, 1 / torch.arange(1, min(shape) + 1) ** 0.5, seed)
        assert spectra.looks_untrained(torch.linalg.svdvals(decay), shape).verdict == "trained"
    with pytest.raises(UserError, match="pass all of them"):
        spectra.looks_untrained(torch.ones(3), shape)


# --- one matrix --------------------------------------------------------------------------------------------------------------


def by_svd(base, tuned, k):
    """`Change` by full singular value decompositions of both matrices."""
    (ub, sb, vb), (ut, st, vt) = (torch.linalg.svd(w.double(), full_matrices=False) for w in (base, tuned))
    delta = tuned.double() - base.double()
    on = torch.einsum("mi,mn,in->i", ub, delta, vb)
    return spectra.Change(
        float((st - sb).norm() / sb.norm()),
        float((st - sb).abs().mean()),
        spectra.summary(spectra.principal_angles(ub[:, :k], ut[:, :k]), len(base)),
        spectra.summary(spectra.principal_angles(vb[:k].T, vt[:k].T), base.shape[1]),
        float(on.square().sum() / delta.square().sum()),
    )


def flat(change):
    return torch.tensor([*_leaves(dataclasses.asdict(change))], dtype=torch.float64)


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 90), (90, 40)])
@pytest.mark.parametrize("size", [1e-4, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_report_is_that_of_the_full_decomposition(m, n, size, dtype):
    base = gauss(m, n).to(dtype)
    tuned = (base + size * gauss(m, n, seed=1)).to(dtype)
    report = spectra.compare(base, tuned, 8)
    torch.testing.assert_close(flat(report.change), flat(by_svd(base, tuned, 8)), rtol=1e-8, atol=1e-12)
    assert report.norm == pytest.approx(relative(tuned.double(), base.double()))
    assert report.chance == (pytest.approx(math.sqrt(1 - 8 / m)), pytest.approx(math.sqrt(1 - 8 / n)))


@pytest.mark.parametrize("span", [1e3, 1e5])
def test_the_gram_matrix_costs_digits_only_at_the_bottom(span):
    """Relative error of s_i about 1e-16 (s_1 / s_i)^2 in float64; in float32 the same values are lost."""
    s = torch.logspace(0, -math.log10(span), 80, dtype=torch.float64)
    w = spectrum(120, 80, s)
    error = (spectra.axes(w).s - s).abs() / s
    assert bool((error < 1e-14 * (s[0] / s) ** 2 + 1e-13).all())
    if span < 1e4:
        return
    single = torch.linalg.eigvalsh(w.float().T @ w.float()).flip(0).clamp(min=0).sqrt()
    assert float((single - s).abs()[-1] / s[-1]) > 0.05


@pytest.mark.parametrize(("m", "n"), [(40, 40), (55, 40), (40, 200)])
def test_the_null_in_the_matrix_s_own_axes_has_the_law_of_random_updates(m, n):
    """Means over draws, of values, angles and diagonal: drawn in full size, and in the axes with Bartlett's triangle."""
    base = spectrum(m, n, torch.linspace(3, 1, 40))
    norm = 0.05 * float(base.norm())
    at = spectra.axes(base)
    own = torch.stack([flat(spectra.random_change(at, norm, 6, seed)) for seed in range(120)])
    tall = [spectra.random_update(at.w.shape, norm, rng(seed)) for seed in range(120)]
    full = torch.stack([flat(spectra.change(at, update, 6)[0]) for update in tall])
    error = (own.var(0) / 120 + full.var(0) / 120).sqrt()
    assert bool(((own.mean(0) - full.mean(0)).abs() < 4 * error).all())
    assert float(full[:, -1].mean()) == pytest.approx(1 / max(m, n), rel=0.1)  # the diagonal's share, S3


def test_a_random_update_has_its_norm_and_its_seed():
    made = spectra.random_update((5, 7), 0.3, rng())
    assert float(made.norm()) == pytest.approx(0.3)
    assert torch.equal(made, spectra.random_update((5, 7), 0.3, rng()))
    with pytest.raises(UserError):
        spectra.random_update((5, 7), math.nan, rng())


def test_updates_of_values_and_of_vectors_are_told_apart():
    w = spectrum(50, 40, torch.linspace(4, 1, 40))
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    stretched = spectra.compare(w, u * (1.01 * s) @ vh, 5)
    assert stretched.change.diagonal == pytest.approx(1)
    assert stretched.change.left.largest < 1e-10 and stretched.change.values == pytest.approx(0.01)
    turn = torch.linalg.matrix_exp(1e-3 * (gauss(50, 50) - gauss(50, 50).T))
    turned = spectra.compare(w, turn @ w, 5)
    assert turned.change.diagonal < 1e-3 and turned.change.values < 1e-10 < turned.change.left.median
    assert turned.change.values < turned.null.values / 1e3
    assert spectra.beside_null([stretched], spectra.MEASURES["values"]) == "more"
    assert spectra.beside_null([turned], spectra.MEASURES["values"]) == "less"


@pytest.mark.parametrize(("dtype", "arccos"), [(torch.float32, 0.0198), (torch.bfloat16, 5.07)])
def test_the_float_floor_is_what_rounding_does(dtype, arccos):
    w = gauss(120, 80)
    floor, real = spectra.float_floor(w, dtype, 10), by_svd(w, w.to(dtype).double(), 10)
    assert math.degrees(floor.arccos) == pytest.approx(arccos, rel=0.01)
    assert floor.change.left.median == pytest.approx(real.left.median, rel=0.5)
    error = spectra.rounding_error(w, dtype, rng(9))
    assert float(error.norm()) == pytest.approx(float((w.to(dtype) - w).norm()), rel=0.03)
    assert float(error.abs().max() / w.abs().max()) < torch.finfo(dtype).eps
    again = w.to(dtype)  # a matrix that is stored so already has the same floor, not 0
    assert spectra.compare(again, again * 2, 10).floor.left.median == pytest.approx(floor.change.left.median, rel=0.5)


def test_matrices_that_cannot_be_compared():
    w = gauss(12, 8)
    for tuned, k, says in (
        (w.T, 2, "cannot be compared"), (w + 1, 8, "below both sides"), (w + 1, 0, "positive"), (w, 2, "are equal"),
        (w * math.inf, 2, "not finite"), (0 * w, 2, "all 0"), (w.long(), 2, "pass plain weights"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            spectra.compare(w, tuned, k)
    for k in (0, 8, 9):
        for matrix in (w, w.T):
            with pytest.raises(UserError, match=f"no floor at k = {k}"):
                spectra.float_floor(matrix, torch.float32, k)
    with pytest.raises(UserError, match="no 4 singular values above rounding"):
        spectra.compare(spectrum(12, 8, [1.0, 1.0, 1.0]), w, 4)


# --- surgery ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two():
    base = gauss(30, 20)
    return base, base + 0.1 * gauss(30, 20, seed=1)


def test_swaps_are_rollback_and_identity_up_to_the_values_gap(two):
    """S2: |U_b S_t V_b' - W_b| = |U_t S_b V_t' - W_t| = |S_t - S_b| <= |dW|."""
    base, tuned = two
    gap = float((torch.linalg.svdvals(tuned) - torch.linalg.svdvals(base)).norm())
    vectors, values = spectra.swap_vectors(base, tuned), spectra.swap_values(base, tuned)
    assert float((vectors.matrix - base).norm()) == pytest.approx(gap)
    assert values.norm == float((values.matrix - tuned).norm()) == pytest.approx(gap)
    assert gap < vectors.norm == pytest.approx(float((vectors.matrix - tuned).norm()))
    assert gap < float((tuned - base).norm())
    torch.testing.assert_close(torch.linalg.svdvals(vectors.matrix), torch.linalg.svdvals(tuned))


def test_restoring_is_replacing_a_component(two):
    base, tuned = two
    (ub, sb, vb), (ut, st, vt) = (torch.linalg.svd(w, full_matrices=False) for w in two)

    def part(u, s, v, which):
        return u[:, which] * s[which] @ v[which]

    for which, made in ((slice(0, 6), spectra.restore_top), (slice(14, 20), spectra.restore_tail)):
        both = made(base, tuned, 6, values="base").matrix
        torch.testing.assert_close(both, tuned - part(ut, st, vt, which) + part(ub, sb, vb, which))
        direction = made(base, tuned, 6)
        torch.testing.assert_close(direction.matrix, tuned - part(ut, st, vt, which) + part(ub, st, vb, which))
        assert direction.norm == pytest.approx(float((direction.matrix - tuned).norm()))


def test_a_mixture_of_bases_has_other_values_and_the_orthonormal_one_has_not(two):
    s = torch.linalg.svdvals(two[1])
    mixed = torch.linalg.svdvals(spectra.restore(*two, top=4, tail=4).matrix)
    clean = torch.linalg.svdvals(spectra.restore(*two, top=4, tail=4, orthonormal=True).matrix)
    assert float((mixed - s).norm()) > 1e-3
    torch.testing.assert_close(clean, s)


def test_limits_of_restoring(two):
    base, tuned = two
    torch.testing.assert_close(spectra.restore(base, tuned, top=12, tail=8, values="base").matrix, base)
    torch.testing.assert_close(spectra.restore_top(base, tuned, 20).matrix, spectra.swap_vectors(base, tuned).matrix)
    assert spectra.restore(base, tuned).norm < 1e-12
    with pytest.raises(UserError, match="at most all of them"):
        spectra.restore(base, tuned, top=12, tail=9)
    with pytest.raises(UserError, match="one shape"):
        spectra.swap_values(base, tuned.T)


def test_the_controls_have_the_norm_they_were_asked_for(two):
    base, tuned = two
    back = spectra.rollback(base, tuned, 0.25)
    assert back.norm == pytest.approx(0.25 * float((tuned - base).norm()))
    torch.testing.assert_close(spectra.rollback(base, tuned, 1.0).matrix, base)
    edit = spectra.random_edit(tuned.float(), 0.7, rng())
    assert edit.norm == pytest.approx(0.7) and edit.matrix.dtype == torch.float32
    assert float((edit.matrix - tuned).norm()) == pytest.approx(0.7, rel=1e-5)
    with pytest.raises(UserError, match="share in"):
        spectra.rollback(base, tuned, 1.5)


# --- whole models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(small_base, tmp_path):
    """(base, tuned): the language model's weights move, the vision tower stays."""
    model = AutoModelForImageTextToText.from_pretrained(small_base)
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if p.ndim == 2 and "visual" not in name:
                p += gauss(*p.shape, seed=i, std=1e-3)
    model.save_pretrained(tmp_path / "tuned")
    shutil.copytree(small_base, tmp_path / "base")  # some tests rewrite it, and others need it as it is
    return tmp_path / "base", tmp_path / "tuned"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_scan_measures_each_matrix_as_it_is(models, tmp_path):
    reports = spectra.scan(*models, k=8)
    base, tuned = (load_file(folder / "model.safetensors") for folder in models)
    assert set(reports) == {n for n, w in base.items() if w.ndim == 2 and n.endswith(".weight") and "embed" not in n}
    assert {name.startswith("visual.") for name, r in reports.items() if r is None} == {True}
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(
        flat(reports[name].change), flat(by_svd(base[name], tuned[name], 8)), rtol=1e-7, atol=1e-12
    )
    assert set(spectra.scan(*models, k=8, match=r"layers\.0\..*q_proj")) == {"model.layers.0.self_attn.q_proj.weight"}


def test_shards_and_other_prefixes_are_the_same_model(models, tmp_path):
    whole = spectra.scan(*models, k=8, match="mlp")
    AutoModelForImageTextToText.from_pretrained(models[1]).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert spectra.scan(models[0], tmp_path / "shards", k=8, match="mlp") == whole

    def prefixed(tensors):
        for name in list(tensors):
            other = re.sub(r"^model\.", "model.language_model.", name)
            tensors[re.sub(r"^visual\.", "model.visual.", other)] = tensors.pop(name)

    rewrite(models[1], prefixed)
    assert spectra.scan(*models, k=8, match="mlp") == whole
    next((tmp_path / "shards").glob("*2-of*")).unlink()
    with pytest.raises(UserError, match="with all its shards"):
        spectra.scan(models[0], tmp_path / "shards", k=8)


def test_an_adapter_is_its_merged_model(small_base, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(small_base)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=12, target_modules=r".*language_model.*(q_proj|down_proj)")
    )
    with torch.no_grad():
        for i, (name, p) in enumerate(adapted.named_parameters()):
            if "lora_B" in name:
                p += gauss(*p.shape, seed=i, std=0.02)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = spectra.scan(small_base, tmp_path / "adapter", k=4)
    merged = spectra.scan(small_base, tmp_path / "merged", k=4)
    assert found.keys() == {name for name, r in merged.items() if r}
    for name, report in found.items():
        torch.testing.assert_close(flat(report.change), flat(merged[name].change), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "odd", [{"use_rslora": True}, {"fan_in_fan_out": True}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q": 2}},
            {"init_lora_weights": "pissa"}, {"lora_alpha": None}, {"peft_type": "LOHA"}, {"modules_to_save": ["lm_head"]}],
)  # fmt: skip
def test_other_adapters_are_refused(tmp_path, small_base, odd):
    plain = {"peft_type": "LORA", "bias": "none", "lora_alpha": 8, "init_lora_weights": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    assert spectra.adapter_scale(tmp_path) == 8
    (tmp_path / "adapter_config.json").write_text(json.dumps({k: v for k, v in plain.items() if k != "bias"}))
    assert spectra.adapter_scale(tmp_path) == 8  # peft's default is "none"
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain | odd))
    with pytest.raises(UserError, match="no plain LoRA"):
        spectra.scan(small_base, tmp_path)


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(Q), f"The tuned model has no {Q}"),
        (
            lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(4, 4)}),
            "The base model has no model.layers.9",
        ),
        (lambda t: t.update({Q: torch.ones(3, 4)}), rf"Shapes differ .*{Q} \(\(64, 64\) and \(3, 4\)\)"),
        (lambda t: t.update({Q: t[Q] * math.nan}), f"{Q}: The matrix is all 0 or not finite"),
        (lambda t: t.update({Q: t[Q].to(torch.int8)}), rf"{Q}: \(64, 64\) of torch.int8 is no matrix"),
        (
            lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}),
            rf"{Q}: \(64, 64\) of torch.float8_e4m3fn is no matrix of floats",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if n.endswith(".bias")],
            r"The tuned model has no model.layers.0.\w+.k_proj.bias",
        ),
        (lambda t: t.pop("model.norm.weight"), "The tuned model has no model.norm.weight"),
        (lambda t: t.pop("model.embed_tokens.weight"), "The tuned model has no model.embed_tokens.weight"),
        (lambda t: t.update({"model.norm.bias": torch.ones(64)}), "The base model has no model.norm.bias"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"Shapes differ in model.norm.weight \(\(64,\) and"),
        (lambda t: t.update({Q.replace("model.", "model.language_model.", 1): t[Q].clone()}), "have one name"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(models, change, says):
    rewrite(models[1], change)
    with pytest.raises(UserError, match=says):
        spectra.scan(*models, k=8)
    with pytest.raises(UserError, match=says):
        spectra.scan(*models, k=8, match="q_proj")


def test_float8_on_both_sides_is_refused_too(models):
    for folder in models:
        rewrite(folder, lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}))
    with pytest.raises(UserError, match="float8_e4m3fn is no matrix of floats"):
        spectra.scan(*models, k=8)


def test_a_tied_head_and_a_larger_vocabulary_are_no_other_model(models):
    whole = spectra.scan(*models, k=8, match="mlp")

    def enlarge(tensors):
        table = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([table, table[:2]])
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(models[1], enlarge)
    assert spectra.scan(*models, k=8, match="mlp") == whole


def test_equal_matrices_of_two_dtypes_have_not_changed(models):
    rewrite(models[0], lambda t: t.update({Q: t[Q].bfloat16()}))
    half = load_file(models[0] / "model.safetensors")[Q]
    rewrite(models[1], lambda t: t.update({Q: half.float()}))
    assert spectra.scan(*models, k=8, match="layers.0.*q_proj") == {Q: None}


def test_bad_questions_and_folders(models, tmp_path):
    for match, says in (("(", "no regular expression"), ("nothing", "No weight matrix's name matches")):
        with pytest.raises(UserError, match=says):
            spectra.scan(*models, match=match)
    with pytest.raises(UserError, match=r"k = 64 does not fit .* take a smaller k"):
        spectra.scan(*models)
    for k in (0, -3):
        with pytest.raises(UserError, match=f"k = {k} is no number of directions: take a positive one"):
            spectra.scan(*models, k=k)
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        spectra.scan(models[0], tmp_path)
    (models[1] / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"nothing")
    with pytest.raises(UserError, match="no safetensors file"):
        spectra.scan(*models, k=8)


def test_a_scan_that_was_cut_goes_on(models, tmp_path, monkeypatch):
    out, real, seen = tmp_path / "scan.jsonl", spectra.compare, []

    def counted(*args):
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(spectra, "compare", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        spectra.scan(*models, k=8, out=out, match="layers")
    kept = len(out.read_text().splitlines()) - 1
    assert kept >= 3 and not list(tmp_path.glob(".scan*"))
    monkeypatch.setattr(spectra, "compare", lambda *args: (seen.append(args), real(*args))[1])
    seen.clear()
    whole = spectra.scan(*models, k=8, out=out, match="layers")
    assert 0 < len(seen) < len(whole) and whole == spectra.scan(*models, k=8, match="layers")
    seen.clear()
    assert spectra.scan(*models, k=8, out=out, match="layers") == whole and not seen
    with pytest.raises(UserError, match="other weights, or with another k"):
        spectra.scan(*models, k=9, out=out, match="layers")
    out.write_text(out.read_text()[:-40])
    with pytest.raises(UserError, match="is no scan"):
        spectra.scan(*models, k=8, out=out, match="layers")


def test_random_fine_tuning_beats_no_null(models):
    reports = spectra.scan(*models, k=8, match="layers")
    assert [
        line for line in spectra.verdicts(reports) if " under a random update" in line and "as much" not in line
    ] == []
    lines = spectra.table(reports).splitlines()
    assert len(lines) == 1 + len(spectra.cells(reports)) == 1 + 14
    assert max(map(len, lines)) < 170


def test_the_command_takes_a_bundled_model_on_either_side(capsys):
    for sides in (("bundled", "bundled-cards"), ("bundled-cards", "bundled")):
        assert main(["spectra", *sides, "--k", "8", "--match", r"layers\.0\..*k_proj"]) == 0
        assert "self_attn.k_proj" in capsys.readouterr().out


def test_the_command(models, tmp_path, capsys):
    assert main(["spectra", *map(str, models), "--k", "8", "--out", str(tmp_path / "scan.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "self_attn.q_proj" in said and "values: as much as under a random update of the same norm: all." in said
    assert "not changed at all: visual." in said
    assert main(["spectra", "bundled", str(tmp_path / "gone")]) == 2
    assert re.fullmatch(r"rftkit: [^\n]+\.\n", capsys.readouterr().err)
