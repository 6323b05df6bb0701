"""The laws that the rows of every plan obey."""

from __future__ import annotations

import numpy as np

from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS


def perfect_output(prediction: str, x0, eps, alpha, sigma):
    """What a perfect network would say."""
    return {
        "epsilon": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "flow": eps - x0,
    }[prediction]


def assert_rows_obey_the_laws(plan: Plan) -> None:
    """The formula itself, with x and m made of x0 and eps in turn."""
    c = {name: plan.column(name) for name in COLUMNS}
    a_t, s_t, a_s, s_s = plan.alphas[:-1], plan.sigmas[:-1], plan.alphas[1:], plan.sigmas[1:]
    new, scales = [], []
    for x0, eps in ((1.0, 0.0), (0.0, 1.0)):
        x = a_t * x0 + s_t * eps
        m = perfect_output(plan.prediction, x0, eps, a_t, s_t) + np.zeros(len(plan))
        scale = np.abs(c["p"] * x) + np.abs(c["q"] * m) + abs(x0)
        calls = plan.calls_network
        assert np.all(np.abs(c["p"] * x + c["q"] * m - x0)[calls] <= 1e-12 * scale[calls])
        estimate = np.where(calls, x0, c["p"] * x)
        history = (c["c1"] + c["c2"] + c["c3"] + c["c4"]) * x0
        new.append(c["a"] * x + c["b"] * estimate + history + c["e"] * m)
        scales.append(np.abs(c["a"] * x) + np.abs(c["b"] * estimate) + np.abs(c["e"] * m))
    assert np.all(np.abs(new[0] - a_s) <= 1e-12 * (scales[0] + a_s))
    if plan.check == "all":
        left = new[1] ** 2 + c["d"] ** 2 * np.exp(c["lv_lo"])
        assert np.all(np.abs(left - s_s**2) <= 1e-12 * (scales[1] ** 2 + s_s**2))
    if plan.nodes[-1] > 0.0 and not plan.inverts:
        return  # the plan ends part way, where no law says how to land
    assert c["d"][-1] == 0.0
    assert (c["a"][-1], c["b"][-1], c["e"][-1]) == (0.0, 1.0, 0.0)
