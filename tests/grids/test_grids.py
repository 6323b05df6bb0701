from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import grids
from fastsample.grids import registry
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers.cases import GRIDS, INDEX_GRIDS, SCHEDULES, all_grids, noisiest

LINEAR = NoiseSchedule.linear()
budgets = st.integers(1, 1500).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T)))


def half_up(x: float) -> int:
    return int(np.floor(x + 0.5))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_grid_fits(name):
    schedule = SCHEDULES[name]
    for label, grid in all_grids(schedule):
        times = grid.times
        assert times.dtype == np.float64, label
        assert times.shape == (len(grid) + 1,)
        assert np.all(np.diff(times) < 0)
        assert times[-1] == 0.0
        assert times[0] <= schedule.T
        assert grid.integer == bool(np.all(times == np.round(times)))
        if label in GRIDS and label != "fractional":
            assert times[0] == schedule.T


@settings(deadline=None, max_examples=150)
@given(budgets, st.integers(0, 5))
def test_integer_grids(budget, seed):
    T, K = budget
    even, quad, chosen = grids.uniform(T, K), grids.quadratic(T, K), grids.random(T, K, seed)
    for grid in (even, quad, chosen):
        assert len(grid) == K
        assert grid.integer
        assert (grid.times[0], grid.times[-1]) == (T, 0)
    assert even.times.tolist()[::-1] == [half_up(T * k / K) for k in range(K + 1)]
    expected = [0]
    for k in range(1, K + 1):
        expected.append(max(half_up(T * k * k / (K * K)), expected[-1] + 1))
    assert quad.times.tolist()[::-1] == expected
    assert chosen == grids.random(T, K, seed)


@settings(deadline=None, max_examples=150)
@given(budgets, st.floats(1.0, 8.0))
def test_powers_of_integer_times(budget, exponent):
    T, K = budget
    times = grids.power(T, K, exponent).times
    assert (len(times), times[0], times[-1]) == (K + 1, T, 0)
    rising = times[::-1]
    assert np.all(rising == np.round(rising))
    real = T * (np.arange(K + 1) / K) ** exponent
    # Two libraries may round a time half way between two integers to either.
    nearest = np.abs(rising - real) <= 0.5 + 1e-9 * T
    raised = (rising[1:] == rising[:-1] + 1) & (rising[1:] >= real[1:])
    assert np.all(nearest[1:] | raised)
    assert grids.power(T, K, 2.0).integer


@settings(deadline=None, max_examples=60)
@given(budgets)
def test_powers_1_and_2_are_the_uniform_and_the_quadratic_grid(budget):
    # But for times that lie half way between integers, where the power itself is rounded.
    T, K = budget
    for exponent, known in ((1.0, grids.uniform(T, K)), (2.0, grids.quadratic(T, K))):
        assert np.abs(grids.power(T, K, exponent).times - known.times).max() <= 1.0
    real = float(T)
    np.testing.assert_allclose(grids.power(real, K, 1.0).times, grids.uniform(real, K).times)
    np.testing.assert_allclose(grids.power(real, K, 2.0).times, grids.quadratic(real, K).times)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("K", [1, 2, 7, 20])
def test_blended_grids_read_a_clock_between_time_and_noise(name, K):
    schedule = SCHEDULES[name]
    for exponent, share in ((1.25, 0.5), (1.0, 0.0), (2.0, 1.0)):
        times = grids.blended(schedule, K, exponent, share).times
        assert (len(times), times[0], times[-1]) == (K + 1, schedule.T, 0.0)
        if schedule.num_steps is None:
            alpha, sigma = schedule.levels(times)
            noise = sigma / (alpha + sigma)
            clock = (1 - share) * times / schedule.T + share * noise / noise[0]
            expected = (np.arange(K, -1, -1) / K) ** exponent
            np.testing.assert_allclose(clock, expected, atol=2e-4)
        else:
            assert np.all(times == np.round(times))


def test_blended_grids_that_are_others():
    flow = NoiseSchedule.flow()
    for K in (1, 5, 12):
        found = grids.blended(flow, K)  # its share of noise is the time itself
        np.testing.assert_allclose(found.times, grids.power(1.0, K, 1.25).times, atol=1e-9)
        assert grids.blended(LINEAR, K, 1.0, 0.0) == grids.uniform(1000, K)
        assert registry.GRIDS["blended"](LINEAR, K) == grids.blended(LINEAR, K)


def test_the_power_grid_of_a_name_has_the_default_exponent():
    for schedule in (LINEAR, NoiseSchedule.flow(), NoiseSchedule.vdm()):
        for K in (1, 4, 10):
            named = registry.GRIDS["power"](schedule, K)
            assert named == grids.power(noisiest(schedule), K)
            even = registry.GRIDS["uniform"](schedule, K)
            assert (named.times <= even.times).all()  # denser near the data
    assert registry.GRIDS["power"](LINEAR, 10) != registry.GRIDS["uniform"](LINEAR, 10)


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-3, 2000), st.integers(1, 300))
def test_real_grids(T, K):
    k = np.arange(K, -1, -1)
    np.testing.assert_allclose(grids.uniform(T, K).times, T * k / K, rtol=1e-14)
    np.testing.assert_allclose(grids.quadratic(T, K).times, T * (k / K) ** 2, rtol=1e-14)
    assert grids.random(T, K, 1).times[0] == T
    assert len(grids.random(T, K, 1)) == K


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
def test_log_snr_and_karras_spacing(name, steps):
    schedule = SCHEDULES[name]
    unit = 1.0 if schedule.num_steps else schedule.T / 1000
    flat, curved = grids.log_snr(schedule, steps), grids.karras(schedule, steps, 5.0)
    assert len(flat) == len(curved) == steps
    for grid in (flat, curved):
        assert grid.times[0] == schedule.T
        if steps > 1:
            assert grid.times[-2] == pytest.approx(unit, rel=1e-9)
    if steps > 3:
        values = schedule.log_snr(flat.times[1:-1])
        np.testing.assert_allclose(np.diff(values), np.diff(values).mean(), rtol=1e-8)
        roots = np.exp(-0.5 * schedule.log_snr(curved.times[1:-1])) ** (1 / 5.0)
        np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-8)


def test_spacing_of_one_step_without_signal():
    schedule = NoiseSchedule.from_betas([1.0])
    for make in (grids.log_snr, grids.karras):
        assert make(schedule, 1) == Grid([1, 0])


@settings(deadline=None, max_examples=100)
@given(budgets)
def test_ddim_lists_are_the_repository_ones(budget):
    T, S = budget
    assert grids.ddim(T, S).times.tolist()[-2::-1] == [i + 1 for i in range(0, T, T // S)]
    seq = [int(s) for s in list(np.linspace(0, np.sqrt(T * 0.8), S) ** 2)]
    grid = grids.ddim(T, S, "quadratic")
    assert grid.times.tolist()[-2::-1] == [i + 1 for i in sorted(set(seq))]
    assert len(grid) == len(set(seq))


def space_timesteps(num_timesteps, section_counts):
    """openai/improved-diffusion respace.py, 1bc7bbb."""
    size_per, extra = divmod(num_timesteps, len(section_counts))
    start_idx, all_steps = 0, []
    for i, section_count in enumerate(section_counts):
        size = size_per + (1 if i < extra else 0)
        if size < section_count:
            raise ValueError
        frac_stride = 1 if section_count <= 1 else (size - 1) / (section_count - 1)
        cur_idx = 0.0
        for _ in range(section_count):
            all_steps.append(start_idx + round(cur_idx))
            cur_idx += frac_stride
        start_idx += size
    return set(all_steps)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 1200), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_respaced_is_space_timesteps(T, counts):
    try:
        expected = sorted(space_timesteps(T, counts))
    except ValueError:
        with pytest.raises(ValueError, match=r"grids\.respaced: sections must not exceed"):
            grids.respaced(T, counts)
        return
    if not expected:
        return
    grid = grids.respaced(T, counts)
    assert grid.times.tolist()[-2::-1] == [i + 1 for i in expected]
    assert grids.respaced(T, ",".join(map(str, counts))) == grid


def test_respaced_takes_one_number():
    assert grids.respaced(1000, 10) == grids.respaced(1000, [10]) == grids.respaced(1000, "10")
    assert grids.respaced(1000, 1).times.tolist() == [1, 0]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("T", [1000, 50, 7])
def test_diffusers_timesteps(spacing, T):
    diffusers = pytest.importorskip("diffusers")
    for offset in (0, 1):
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=T, timestep_spacing=spacing, steps_offset=offset
        )
        for K in range(1, T + 1) if T < 1000 else [*range(1, 130), 333, 500, 999, 1000]:
            scheduler.set_timesteps(K)
            theirs = scheduler.timesteps.tolist()
            if theirs[0] >= T:
                with pytest.raises(ValueError, match="steps_offset must keep every index below"):
                    grids.diffusers(T, K, spacing, offset)
                continue
            ours = grids.diffusers(T, K, spacing, offset).times.tolist()
            assert ours == [i + 1 for i in theirs if i >= 0] + [0], (K, offset)


def test_from_indices():
    grid = Grid.from_indices([0, 999, 3, 3, 500])
    assert grid.times.tolist() == [1000, 501, 4, 1, 0]
    assert len(grid) == 4
    assert Grid.from_indices(np.array([3, 0])) == Grid.from_indices(range(0, 4, 3))
    assert Grid.from_indices({7}) == Grid([8, 0])


def test_is_a_value():
    grid = Grid([10, 2.5, 0])
    assert list(grid) == [10.0, 2.5, 0.0]
    assert grid == Grid(np.array([10, 2.5, -0.0]))
    assert hash(grid) == hash(Grid((10, 2.5, -0.0)))
    assert grid != Grid([10, 2, 0])
    assert grid != [10, 2.5, 0]
    assert not grid.integer
    assert repr(grid) == "Grid([10, 2.5, 0], 2 steps)"
    assert repr(grids.uniform(1000, 100)) == (
        "Grid([1000, 990, 980, 970, 960, ..., 40, 30, 20, 10, 0], 100 steps)"
    )
    with pytest.raises(ValueError, match="read-only"):
        grid.times[0] = 3
    with pytest.raises(AttributeError):
        grid.times = np.zeros(2)
    source = np.array([2.0, 0.0])
    kept = Grid(source)
    source[0] = 5.0
    assert kept.times[0] == 2.0


def test_index_grids_only_for_discrete_schedules():
    names = {name for name, _ in all_grids(SCHEDULES["flow"])}
    assert not names & set(INDEX_GRIDS)
    assert noisiest(SCHEDULES["flow"]) == 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Grid([0.0]), ValueError, "Grid: times must hold at least 2 times, got 1"),
        (lambda: Grid([]), ValueError, "Grid: times must be a vector with at least one entry"),
        (lambda: Grid([[1.0, 0.0]]), ValueError, r"Grid: times must be a vector .* shape \(1, 2\)"),
        (lambda: Grid([2, 2, 0]), ValueError, "strictly decreasing .* got 2 then 2 at position 0"),
        (lambda: Grid([0, 1, 2]), ValueError, "strictly decreasing .* got 0 then 1 at position 0"),
        (lambda: Grid([3, 1]), ValueError, "times must end at 0 .* got 1; append 0.0"),
        (lambda: Grid([3, 0, -1]), ValueError, "times must end at 0 .* got -1"),
        (lambda: Grid([np.inf, 0]), ValueError, "Grid: times must be finite, got inf"),
        (lambda: Grid([np.nan, 0]), ValueError, "Grid: times must be finite, got nan"),
        (lambda: Grid("abc"), TypeError, "Grid: times must hold real numbers, got <U3 data"),
        (lambda: Grid([True, False]), TypeError, "Grid: times must hold real numbers, got bool"),
        (lambda: Grid.from_indices([]), ValueError, "from_indices: indices must be a vector"),
        (lambda: Grid.from_indices([1.0]), TypeError, "indices must be integers, got float64 data"),
        (lambda: Grid.from_indices([-1, 4]), ValueError, "indices must not be negative, got -1"),
        (
            lambda: grids.uniform(10, 0),
            ValueError,
            r"grids.uniform: num_steps must be in \[1, 10\], got 0",
        ),
        (
            lambda: grids.uniform(10, 11),
            ValueError,
            r"uniform: num_steps must be in \[1, 10\], got 11",
        ),
        (
            lambda: grids.uniform(10, 2.0),
            TypeError,
            "uniform: num_steps must be an integer, got 2.0",
        ),
        (lambda: grids.uniform(0, 1), ValueError, "grids.uniform: T must be at least 1, got 0"),
        (lambda: grids.uniform(0.0, 1), ValueError, "grids.uniform: T must be positive, got 0"),
        (
            lambda: grids.uniform(1.0, 0),
            ValueError,
            "grids.uniform: num_steps must be at least 1, got 0",
        ),
        (
            lambda: grids.uniform("T", 1),
            TypeError,
            "grids.uniform: T must be a real number, got 'T'",
        ),
        (
            lambda: grids.blended(LINEAR, 1001),
            ValueError,
            r"grids.blended: num_steps must be in \[1, 1000\], got 1001",
        ),
        (
            lambda: grids.blended(LINEAR, 5, 1.0, 1.5),
            ValueError,
            r"grids.blended: share must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: grids.power(5, 6),
            ValueError,
            r"grids.power: num_steps must be in \[1, 5\]",
        ),
        (
            lambda: grids.power(5, 3, 0.5),
            ValueError,
            r"grids.power: exponent must be .*1.*, got 0.5",
        ),
        (
            lambda: grids.power(5, 3, "a"),
            TypeError,
            "grids.power: exponent must be a real number, got 'a'",
        ),
        (
            lambda: grids.quadratic(5, 6),
            ValueError,
            r"grids.quadratic: num_steps must be in \[1, 5\]",
        ),
        (
            lambda: grids.log_snr(LINEAR, 1001),
            ValueError,
            r"log_snr: num_steps must be in \[1, 1000\]",
        ),
        (
            lambda: grids.log_snr(1000, 5),
            TypeError,
            "log_snr: schedule must be a NoiseSchedule, got 1000",
        ),
        (
            lambda: grids.karras(LINEAR, 0),
            ValueError,
            r"grids.karras: num_steps must be in \[1, 1000\]",
        ),
        (
            lambda: grids.karras(LINEAR, 5, 0.0),
            ValueError,
            "grids.karras: rho must be positive, got 0",
        ),
        (lambda: grids.respaced(9, [4, 6]), ValueError, "got 6 steps for section 1 of 4"),
        (lambda: grids.respaced(9, "a,b"), ValueError, 'sections must look like "10,15,20"'),
        (lambda: grids.respaced(9, "ddim"), ValueError, 'sections must look like .* got "ddim"'),
        (
            lambda: grids.respaced(9, [0]),
            ValueError,
            r"sections must keep at least one step, got \[0\]",
        ),
        (
            lambda: grids.respaced(9, []),
            ValueError,
            r"sections must keep at least one step, got \[\]",
        ),
        (
            lambda: grids.respaced(9, [1.5]),
            TypeError,
            "respaced: sections must be an integer, got 1.5",
        ),
        (lambda: grids.respaced(1000, "ddim37"), ValueError, 'got "ddim37"; pass sections="37"'),
        (
            lambda: grids.ddim(10, 11),
            ValueError,
            r"grids.ddim: num_steps must be in \[1, 10\], got 11",
        ),
        (
            lambda: grids.ddim(10, 5, "quad"),
            ValueError,
            "grids.ddim: spacing must be .* got 'quad'",
        ),
        (
            lambda: grids.diffusers(10, 5, "x"),
            ValueError,
            "grids.diffusers: spacing must be .* got 'x'",
        ),
        (lambda: grids.diffusers(10, 10, steps_offset=1), ValueError, "got 1 with top index 10"),
        (
            lambda: grids.diffusers(10, 5, steps_offset=-1),
            ValueError,
            "steps_offset must be at least 0",
        ),
        (
            lambda: grids.random(10, 11, 0),
            ValueError,
            r"grids.random: num_steps must be in \[1, 10\]",
        ),
        (
            lambda: grids.random(10, 1, -1),
            ValueError,
            "grids.random: seed must be at least 0, got -1",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
