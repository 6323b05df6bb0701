"""What cost tables and analytic variances refuse."""

from __future__ import annotations

import numpy as np

import fastsample as fs
from tests.helpers.diagonal import SMALL
from tests.helpers.networks import LINEAR, denoiser, halve
from tests.helpers.profile_cases import TIMES, levels
from tests.helpers.refusals import check_refusal, refusals

FOUND = SMALL.profile()
ELBO, MSE, RESPACED = (
    FOUND.costs("elbo"),
    FOUND.costs("mse"),
    FOUND.costs("elbo", decoder="respaced"),
)
GRID = fs.Grid([20, 7, 0])


def costs(*objective, **options):
    return lambda: FOUND.costs(*objective, **options)


def analytic(times, **options):
    return lambda: FOUND.analytic_variance(fs.Grid(times), **options)


@refusals(
    costs={
        "objective": (
            costs("likelihood"),
            ValueError,
            r'costs: objective must be "elbo", "mse" or "trajectory", got \'likelihood\'',
        ),
        "variance": (
            costs(variance="fixed"),
            ValueError,
            r'variance must be "small", "large", "learned_range" or "analytic", got \'fixed\'',
        ),
        "a learned variance of a model without one": (
            costs(variance="learned_range"),
            ValueError,
            'costs: variance must be "small", "large" or "analytic" for the profile of a model ',
        ),
        "trajectories that were not run": (
            costs("trajectory"),
            ValueError,
            'costs: objective must be "elbo" or "mse" .*; pass trajectories=64 to profile',
        ),
        "variance, mse": (
            costs("mse", variance="small"),
            ValueError,
            "costs: variance must be left out with objective=\"mse\", got 'small'",
        ),
        "decoder, mse": (
            costs("mse", decoder="forward"),
            ValueError,
            "costs: decoder must be left out with objective=\"mse\", got 'forward'",
        ),
        "decoder values, trajectory": (
            costs("trajectory", decoder=np.ones(20)),
            ValueError,
            'costs: decoder must be left out with objective="trajectory", got array',
        ),
        "decoder": (
            costs(decoder="best"),
            ValueError,
            r'decoder must be "optimal", "forward", "posterior", "respaced" or variances, got ',
        ),
        "decoder of another length": (
            costs(decoder=np.ones(21)),
            ValueError,
            r"costs: decoder must be 20 positive variances, got shape \(21,\) from 1$",
        ),
        "decoder of another shape": (
            costs(decoder=np.full((20, 1), 0.5)),
            ValueError,
            r"decoder must be 20 positive variances, got shape \(20, 1\) from 0\.5$",
        ),
        "no variance at all": (
            costs(decoder=np.linspace(0.0, 1.0, 20)),
            ValueError,
            r"decoder must be 20 positive variances, got shape \(20,\) from 0$",
        ),
        "negative variance": (
            costs(decoder=np.linspace(-0.5, 1.0, 20)),
            ValueError,
            r"decoder must be 20 positive variances, got shape \(20,\) from -0\.5$",
        ),
        "NaN": (costs(decoder=np.full(20, np.nan)), ValueError, "decoder must be finite, got nan"),
        "no numbers": (costs(decoder=None), TypeError, "decoder must hold real numbers, got "),
    },
    grids={
        "K > T": (lambda: ELBO.best_grid(21), ValueError, r"steps must be in \[1, 20\], got 21"),
        "K = 0": (lambda: ELBO.best_grid(0), ValueError, r"steps must be in \[1, 20\], got 0"),
        "some K > T": (
            lambda: ELBO.best_grids([3, 30]),
            ValueError,
            r"best_grid: steps must be in \[1, 20\], got 30",
        ),
        "no integer": (lambda: ELBO.best_grid(2.5), TypeError, "steps must be an integer, got 2.5"),
        "one step, respaced": (
            lambda: RESPACED.best_grid(1),
            ValueError,
            r"best_grid: steps must be in \[2, 20\], got 1",
        ),
        "cost of one step, respaced": (
            lambda: RESPACED.cost(fs.Grid([20, 0])),
            ValueError,
            'cost: grid must have 2 steps or more with decoder="respaced", got 1',
        ),
        "off the table": (
            lambda: ELBO.cost(fs.Grid([20, 3.5, 0])),
            ValueError,
            "cost: grid must lie on the 20 times of the table, got 3.5",
        ),
        "above the table": (
            lambda: MSE.cost(fs.Grid([25, 3, 0])),
            ValueError,
            "cost: grid must lie on the 20 times of the table, got 25",
        ),
        "below the prior": (
            lambda: ELBO.cost(fs.Grid([19, 3, 0])),
            ValueError,
            "cost: grid must start at 20, where the prior is, got 19",
        ),
        "a list": (lambda: ELBO.cost([20, 0]), TypeError, "cost: grid must be a Grid, got list"),
        "bits of another objective": (
            lambda: MSE.bits_per_dim(GRID),
            ValueError,
            "bits_per_dim: objective must be \"elbo\", got a table of 'mse'",
        ),
    },
    analytic={
        "off the profile": (
            analytic([20, 3.5, 0]),
            ValueError,
            "analytic_variance: grid must lie on the 20 times of the profile, got 3.5",
        ),
        "above the profile": (
            analytic([40, 3, 0]),
            ValueError,
            "analytic_variance: grid must lie on the 20 times of the profile, got 40",
        ),
        "estimate": (
            analytic([20, 3, 0], estimate="score"),
            ValueError,
            r'analytic_variance: estimate must be "error" or "eps", got \'score\'',
        ),
        "a list": (
            lambda: FOUND.analytic_variance([20, 3, 0]),
            TypeError,
            "analytic_variance: grid must be a Grid, got list",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_times_that_were_not_measured():
    """A profile of a few times knows no others, whatever the schedule has."""
    found = fs.profile(denoiser(halve, 3, clip=1.0), levels(4, 3), times=TIMES, trajectories=2)
    for objective in ("elbo", "mse", "trajectory"):
        table = found.costs(objective)
        assert table.schedule == LINEAR
        assert set(table.best_grid(3).times[:-1]) <= set(TIMES)
        check_refusal(
            lambda table=table: table.cost(fs.Grid([1000, 2, 0])),
            ValueError,
            "cost: grid must lie on the 5 times of the table, got 2",
        )
        check_refusal(
            lambda table=table: table.best_grid(6),
            ValueError,
            r"best_grid: steps must be in \[1, 5\], got 6",
        )
