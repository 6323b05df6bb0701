"""The quality benchmark: its oracle, its metrics, its verdicts, and a run of a few entries."""

import functools
import json
import sys

import numpy as np
import pytest
import torch

import fastsample as fs

# diffusers 0.42 makes arrays of tensors in the way NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def mixture():
    from benchmarks.models import Mixture

    generator = np.random.default_rng(0)
    return Mixture(
        generator.standard_normal((4, 3)), generator.uniform(0.01, 1.0, (4, 3)), [1, 2, 3, 4]
    )


@pytest.mark.parametrize("t", [1.0, 37.5, 500.0, 1000.0])
def test_epsilon_is_the_scaled_score_of_the_density(mixture, t):
    alpha, sigma = (float(level) for level in fs.NoiseSchedule.linear().levels(t))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(mixture.epsilon(x.detach(), alpha, sigma), -sigma * score)


def test_density_is_the_textbooks(mixture):
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    alpha, sigma = 0.8, 0.6
    deviations = (alpha**2 * mixture.variances + sigma**2).sqrt()
    parts = Independent(Normal(alpha * mixture.means, deviations), 1)
    known = MixtureSameFamily(Categorical(mixture.weights), parts)
    x = torch.linspace(-3, 3, 30, dtype=torch.float64).reshape(10, 3)
    torch.testing.assert_close(mixture.log_density(x, alpha, sigma), known.log_prob(x))


def test_samples_have_the_moments_of_the_mixture(mixture):
    mean = mixture.weights @ mixture.means
    second = mixture.weights @ (mixture.variances + mixture.means.square())
    for even in (False, True):
        x = mixture.sample(40_000, torch.Generator().manual_seed(2), even=even).double()
        assert x.shape == (40_000, 3)
        assert (x.mean(0) - mean).abs().max() < 5 * (second / 40_000).max().sqrt()
        torch.testing.assert_close(x.square().mean(0), second, rtol=0.05, atol=0.0)


def test_network_knows_fractional_indices():
    from benchmarks.models import MODELS

    model = MODELS["ring-2"]()
    x = torch.randn(5, 2)
    between = model.denoiser(x, 10.5)
    assert not torch.equal(between, model.denoiser(x, 10.0))
    assert not torch.equal(between, model.denoiser(x, 11.0))
    assert model.network.calls == 3


def test_sliced_wasserstein_is_that_of_pot():
    ot = pytest.importorskip("ot")
    from benchmarks.quality import SlicedWasserstein

    x, y = torch.randn(200, 5), 1.0 + 2.0 * torch.randn(200, 5)
    distance = SlicedWasserstein(y, seed=3)
    directions = distance.directions.double().numpy().T
    known = ot.sliced_wasserstein_distance(
        x.double().numpy(), y.double().numpy(), projections=directions
    )
    assert distance(x) == pytest.approx(float(known), rel=1e-5)
    assert distance(y.flip(0)) == 0.0


def test_frechet_distance_is_the_formula():
    linalg = pytest.importorskip("scipy.linalg")
    pytest.importorskip("torchmetrics")
    from benchmarks.models import Counted, Model
    from benchmarks.quality import Classifier, Judge

    real, fake = torch.randn(150, 1, 8, 8), 0.5 * torch.randn(100, 1, 8, 8)
    net = Classifier()
    denoiser = fs.Denoiser(torch.nn.Identity(), fs.NoiseSchedule.linear(), (1, 8, 8))
    model = Model("", "", denoiser, Counted(denoiser.model), lambda count, seed: (real, fake), 100)
    found = Judge(model, 100, 0, net)(fake)["frechet"]
    with torch.no_grad():
        f, g = net(real).double(), net(fake).double()
    root = linalg.sqrtm(f.T.cov().numpy() @ g.T.cov().numpy()).real
    parts = (f.mean(0) - g.mean(0)).square().sum() + f.T.cov().trace() + g.T.cov().trace()
    assert found == pytest.approx(float(parts) - 2.0 * float(np.trace(root)), rel=1e-3)


def test_left_out_variants_are_others_by_another_name():
    schedule, grid = fs.NoiseSchedule.linear(), fs.grids.quadratic(1000, 10)
    for knobs, variance in (({"eta": 1.0}, "small"), ({"sigma_hat": True}, "large")):
        rows = fs.ddim(schedule, grid, **knobs).rows
        np.testing.assert_allclose(
            rows, fs.ancestral(schedule, grid, variance=variance).rows, atol=1e-12
        )


@pytest.mark.parametrize(
    ("ours", "scheduler"),
    [
        ({"method": "ddim"}, "DDIMScheduler"),
        ({"method": "dpm++"}, "DPMSolverMultistepScheduler"),
        ({"method": "unipc"}, "UniPCMultistepScheduler"),
    ],
)
def test_peers_are_run_as_ours_are(ours, scheduler):
    pytest.importorskip("diffusers")
    pytest.importorskip("sklearn")
    from benchmarks.contestants import Ours, Peer
    from benchmarks.models import MODELS
    from fastsample.evaluation.diffusers_schedulers import TIMES

    model = MODELS["digits"]()
    start = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mine = Ours("", **ours).draw(model, 10, start, 0)
    peer = Peer("", scheduler, TIMES["trailing"], "trailing").draw(model, 10, start, 0)
    assert model.network.calls == 20
    # DDIM of diffusers keeps the network's noise where x0 is clipped, ours takes it from x0.
    close = (mine - peer).abs() < 2e-3
    assert close.float().mean() > (0.5 if scheduler == "DDIMScheduler" else 0.999)


def test_true_digits_are_apart():
    pytest.importorskip("sklearn")
    from benchmarks.models import MODELS

    for name in ("digits", "digits-labels"):
        model = MODELS[name]()
        reference, fresh = model.data(500, 1)
        images, classes = model.labelled
        assert len(reference) == 1297
        assert len(fresh) == 500
        together = torch.cat([reference, fresh]).flatten(1)
        assert torch.equal(together.unique(dim=0), images.flatten(1).unique(dim=0))
    for image, label in zip(fresh, range(500), strict=True):
        same = (images == image).flatten(1).all(dim=1)
        assert label % 10 in classes[same]
    with pytest.raises(ValueError, match="digits: count must be at most 898"):
        model.data(899, 0)


def test_candidates_have_no_more_calls_and_no_second_name():
    from benchmarks.quality_results import best, best_of_family, candidates

    runs = {
        "first": {"calls": 10, "sw2": [0.3, 0.1]},
        "second": {"calls": 9, "sw2": [0.2, 0.3]},
        "again": {"calls": 9, "sw2": [0.2, 0.3], "same_as": "second"},
        "long": {"calls": 11, "sw2": [0.0, 0.0]},
        "none": {"refused": "no such plan"},
    }
    row = {"grid": "uniform", "family": "DDIM", "peer": False}
    rows = [{**row, "method": name, "runs": {"10": run}} for name, run in runs.items()]
    model = {"floor": {"sw2": [0.1]}, "rows": rows}
    assert [found["method"] for found in candidates(model, 10)] == ["first", "second"]
    assert candidates(model, 10, peer=True) == []
    assert best(model, "sw2", 10, peer=False) is rows[0]
    assert best_of_family(model, "DDIM", "sw2", 10, peer=False)["method"] == "second"
    assert best_of_family(model, "DDIM", "sw2", 10, peer=True) is None


@pytest.mark.parametrize(
    ("ours", "peer", "words"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], "better"),
        ([1.0, 1.1, 1.25], [1.1, 1.0, 1.2], "as good within the noise"),
        ([2.0, 2.1, 2.2], [1.9, 2.0, 2.1], "worse"),
    ],
)
def test_verdict_pairs_the_seeds(ours, peer, words):
    from benchmarks.quality_results import verdict

    finals = {"fastsample": {"sw2": ours}, "diffusers": {"sw2": peer}}
    found = verdict({"finals": {"sw2": finals}}, "sw2")
    assert found["words"] == words
    assert found["difference"] == pytest.approx(np.mean(ours) - np.mean(peer))


@pytest.mark.slow
def test_bench_quality_runs_and_renders(monkeypatch, tmp_path, capsys):
    for needed in ("diffusers", "sklearn", "torchmetrics", "matplotlib"):
        pytest.importorskip(needed)
    from benchmarks import bench_quality, quality, quality_report
    from benchmarks.contestants import Ours, Peer
    from benchmarks.models import MODELS
    from fastsample.evaluation.diffusers_schedulers import TIMES

    monkeypatch.setattr(
        bench_quality, "train_classifier", functools.partial(quality.train_classifier, epochs=1)
    )
    entries = [
        Ours("DDIM", "ddim"),
        Ours("DDIM", "ddim", grid="trailing"),
        Ours("DDPM", "ancestral"),
        Ours("FastDPM", "fastdpm", {"approximation": "steps", "spacing": "quadratic"}),
        Peer("UniPC", "UniPCMultistepScheduler", TIMES["karras"], "karras"),
        Peer("DDPM", "DDPMScheduler", TIMES["leading"], "leading"),
    ]
    result = {
        name: bench_quality.run_model(
            MODELS[name](),
            count=40,
            steps=(5, 10),
            seeds=2,
            final_seeds=2,
            limit_steps=12,
            entries=entries,
        )
        for name in ("ring-2", "digits")
    }
    for name, model in result.items():
        first, second, *rest = model["rows"]
        for K in ("5", "10"):
            assert first["runs"][K]["calls"] == int(K)
            assert second["runs"][K]["same_as"] == "ddim, uniform"
            assert "rmse" in first["runs"][K]
            assert "rmse" not in rest[0]["runs"][K]
        assert len(first["runs"]["10"]["sw2"]) == 2
        assert set(model["finals"]) == {"sw2"} | ({"frechet"} if name == "digits" else set())
        assert len(model["finals"]["sw2"]["diffusers"]["sw2"]) == 2

    bench_quality.write(tmp_path, result)
    assert json.loads((tmp_path / "quality.json").read_text()) == result
    monkeypatch.setattr(sys, "argv", ["bench_quality", "--render", "--out", str(tmp_path)])
    bench_quality.main()
    text = (tmp_path / "quality.md").read_text()
    assert text == quality_report.markdown(result)
    assert text.count("(best of diffusers)") == 2
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    assert "digits 6/6 DDPMScheduler, leading" in capsys.readouterr().out


def test_every_entry_has_a_name_of_its_own():
    pytest.importorskip("sklearn")
    from benchmarks.lineup import contestants
    from benchmarks.models import MODELS

    for make in MODELS.values():
        names = [(entry.peer, entry.label, entry.grid) for entry in contestants(make())]
        assert len(set(names)) == len(names)
