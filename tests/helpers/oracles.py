"""Independent float64 NumPy transcriptions: each paper's own loop, and the plain row executor.

Loops index time as their repositories do, 0-based with abar[-1] = 1. Nothing here uses the package.
Sources: ermongroup/ddim e8df66c, openai/improved-diffusion 1bc7bbb, FengNiMa/FastDPM_pytorch
6540c1c, huggingface/diffusers 0.42 (DPMSolverMultistepScheduler, UniPCMultistepScheduler).

The last three take noise levels instead of times: alphas and sigmas `(K + 1,)`, noisiest first, the
last 1 and 0; and a denoiser (x, row) -> x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Network = Callable[[Array, float], Array]  # (x, 0-based index) -> output
Denoise = Callable[[Array, int], Array]

X_T = np.array([1.5, -0.7, 0.3, 2.1, -1.2, 0.05, -2.4, 0.9])


def noise_formula(steps: int) -> Array:
    """The golden files' stand-in for standard normal draws, `(steps, 8)`."""
    return math.sqrt(2) * np.sin(np.arange(1, 8 * steps + 1.0)).reshape(steps, 8)


def execute(plan, network: Callable[[Array, float], Array], x: Array, noise: Array) -> Array:
    """Run a plan row by row; network takes the plan's own time, `(2, ...)` outputs hold [m, v]."""
    samples = plan.nodes[0] > plan.nodes[-1]
    earlier: list[Array] = []  # the x0's of rows with a network call since the last rise
    for k, (row, t) in enumerate(zip(plan.rows.tolist(), plan.times.tolist(), strict=True)):
        p, q, lo, hi, _, a, b, e, *c, d, lv_lo, lv_hi = row
        calls = q != 0 or e != 0 or (d != 0 and (lv_lo != 0 or lv_hi != 0))
        m = network(x, t) if calls else np.zeros_like(x)
        sd = d
        if m.ndim > x.ndim:
            m, v = m
            sd = d * np.exp((lv_lo + (v + 1) / 2 * (lv_hi - lv_lo)) / 2)
        x0 = np.minimum(np.maximum(p * x + q * m, lo), hi)
        x = a * x + b * x0 + e * m
        assert not any(c[len(earlier) :]), f"row {k} looks back further than there is history"
        for weight, h in zip(c, earlier, strict=False):
            x = x + weight * h
        x = x + sd * noise[k]
        if samples and plan.nodes[k + 1] > plan.nodes[k]:
            earlier = []
        elif calls:
            earlier = [x0, *earlier][:4]
    return x


def states(plan, network: Callable[[Array, float], Array], x: Array, noise: Array) -> Array:
    """`(K + 1, ...)`: what the network is shown in each call of `execute`, and the result."""
    seen: list[Array] = []

    def spy(x: Array, t: float) -> Array:
        seen.append(x)
        return network(x, t)

    result = execute(plan, spy, x, noise)
    return np.array([*seen, result])


# ---- toy networks of the golden files


def model_a(abar: Array) -> Network:
    """Exact for data from N(0, I)."""
    return lambda x, i: np.sqrt(1 - abar[int(i)]) * x


def model_b(T: int) -> Network:
    """A nonlinear network without clipping: reaches |x| = 180."""
    return lambda x, i: np.tanh(x) * (0.3 + i / T)


def model_a2(T: int) -> Network:
    """Model B with a learned variance."""
    return lambda x, i: np.stack([np.tanh(x) * (0.3 + i / T), np.tanh(0.5 * x)])


# ---- ermongroup/ddim functions/denoising.py


def _levels(betas: Array) -> Callable[[int], float]:
    """`compute_alpha`: beta = 0 is prepended, so index -1 gives 1."""
    table = np.cumprod(1 - np.concatenate(([0.0], betas)))
    return lambda i: float(table[i + 1])


def generalized_steps(
    x: Array, seq: Sequence[int], model: Network, betas: Array, eta: float, noise: Array
) -> Array:
    """DDIM eq. (12); never clips."""
    level = _levels(betas)
    previous = [-1, *seq[:-1]]
    for k, (i, j) in enumerate(zip(reversed(seq), reversed(previous), strict=True)):
        at, at_next = level(i), level(j)
        et = model(x, i)
        x0 = (x - et * math.sqrt(1 - at)) / math.sqrt(at)
        c1 = eta * math.sqrt((1 - at / at_next) * (1 - at_next) / (1 - at))
        c2 = math.sqrt((1 - at_next) - c1**2)
        x = math.sqrt(at_next) * x0 + c1 * noise[k] + c2 * et
    return x


def ddpm_steps(
    x: Array, seq: Sequence[int], model: Network, betas: Array, noise: Array, clip: float | None
) -> Array:
    """The sigma-hat sampler; the repository clips at 1."""
    level = _levels(betas)
    previous = [-1, *seq[:-1]]
    for k, (i, j) in enumerate(zip(reversed(seq), reversed(previous), strict=True)):
        at, atm1 = level(i), level(j)
        beta = 1 - at / atm1
        x0 = math.sqrt(1 / at) * x - math.sqrt(1 / at - 1) * model(x, i)
        x0 = x0 if clip is None else np.clip(x0, -clip, clip)
        mean = (math.sqrt(atm1) * beta * x0 + math.sqrt(1 - beta) * (1 - atm1) * x) / (1 - at)
        x = mean + (i != 0) * math.sqrt(beta) * noise[k]
    return x


# ---- openai/improved-diffusion gaussian_diffusion.py and respace.py


class SpacedDiffusion:
    """`SpacedDiffusion` on the kept indices of a chain with the given betas."""

    def __init__(self, betas: Array, kept: Sequence[int]):
        """Re-derive the betas of the kept steps."""
        abar, last, new = np.cumprod(1 - betas), 1.0, []
        for i in kept:
            new.append(1 - abar[i] / last)
            last = abar[i]
        self.map = list(kept)
        self.betas = np.array(new)
        self.abar = np.cumprod(1 - self.betas)
        self.abar_prev = np.append(1.0, self.abar[:-1])
        self.variance = self.betas * (1 - self.abar_prev) / (1 - self.abar)

    def predict(self, x: Array, k: int, model: Network, clip: bool) -> tuple[Array, Array | None]:
        """(x0, v): `p_mean_variance` up to the posterior."""
        out = model(x, self.map[k])
        eps, v = out if out.ndim > x.ndim else (out, None)
        x0 = math.sqrt(1 / self.abar[k]) * x - math.sqrt(1 / self.abar[k] - 1) * eps
        return (np.clip(x0, -1, 1) if clip else x0), v

    def p_sample_loop(
        self, x: Array, model: Network, noise: Array, clip: bool, variance: str
    ) -> Array:
        """Ancestral sampling."""
        for n, k in enumerate(reversed(range(len(self.map)))):
            x0, v = self.predict(x, k, model, clip)
            coef1 = self.betas[k] * math.sqrt(self.abar_prev[k]) / (1 - self.abar[k])
            coef2 = (1 - self.abar_prev[k]) * math.sqrt(1 - self.betas[k]) / (1 - self.abar[k])
            small = math.log(self.variance[k] or self.variance[1])
            large = math.log(self.betas[k])
            log = {"small": small, "large": large}.get(variance)
            if log is None:
                frac = (v + 1) / 2
                log = frac * large + (1 - frac) * small
            x = coef1 * x0 + coef2 * x + (k != 0) * np.exp(0.5 * log) * noise[n]
        return x

    def ddim_sample_loop(
        self, x: Array, model: Network, noise: Array, clip: bool, eta: float
    ) -> Array:
        """DDIM with eps re-derived from the clipped x0."""
        for n, k in enumerate(reversed(range(len(self.map)))):
            x0, _ = self.predict(x, k, model, clip)
            at, prev = self.abar[k], self.abar_prev[k]
            eps = (math.sqrt(1 / at) * x - x0) / math.sqrt(1 / at - 1)
            sigma = eta * math.sqrt((1 - prev) / (1 - at)) * math.sqrt(1 - at / prev)
            x = x0 * math.sqrt(prev) + math.sqrt(1 - prev - sigma**2) * eps
            x = x + (k != 0) * sigma * noise[n]
        return x

    def ddim_reverse(self, x: Array, model: Network) -> Array:
        """`ddim_reverse_sample` for k = 0..K-2, unclipped: level 0 to level K-1."""
        for k in range(len(self.map) - 1):
            x0, _ = self.predict(x, k, model, clip=False)
            at, following = self.abar[k], self.abar[k + 1]
            eps = (math.sqrt(1 / at) * x - x0) / math.sqrt(1 / at - 1)
            x = x0 * math.sqrt(following) + math.sqrt(1 - following) * eps
        return x


def slerp(z1: Array, z2: Array, weight: float) -> Array:
    """ermongroup/ddim runners/diffusion.py: over the whole flattened tensor."""
    theta = math.acos(float(np.sum(z1 * z2) / (np.linalg.norm(z1) * np.linalg.norm(z2))))
    parts = math.sin((1 - weight) * theta) * z1 + math.sin(weight * theta) * z2
    return parts / math.sin(theta)


# ---- FengNiMa/FastDPM_pytorch generate.py


def fastdpm_sampling(
    x: Array, levels: Array, times: Sequence[float], model: Network, kappa: float, noise: Array
) -> Array:
    """`STEP_sampling`, `VAR_sampling`: gamma_bar and what the network is told, cleanest first."""
    last = len(levels) - 1
    for k, s in enumerate(range(last, -1, -1)):
        a, b = levels[s], levels[s - 1] if s > 0 else 1.0
        e = model(x, times[s])
        d = kappa * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = x * math.sqrt(b / a)
        x = x + (math.sqrt(1 - b - d**2) - math.sqrt(1 - a) * math.sqrt(b / a)) * e
        x = x + d * noise[k]
    return x


def std_sampling(x: Array, betas: Array, model: Network, noise: Array) -> Array:
    """`STD_sampling`: DDPM in all T steps, with the posterior's variance."""
    level = _levels(betas)
    for k, t in enumerate(range(len(betas) - 1, -1, -1)):
        e = model(x, t)
        x = (x - betas[t] / math.sqrt(1 - level(t)) * e) / math.sqrt(1 - betas[t])
        x = x + math.sqrt(betas[t] * (1 - level(t - 1)) / (1 - level(t))) * noise[k]
    return x


# ---- samplers on any noise levels


def clean(prediction: str, x: Array, m: Array, alpha: float, sigma: float) -> Array:
    """x0 out of a network's output, each prediction from its own definition."""
    if prediction == "epsilon":
        return (x - sigma * m) / alpha
    if prediction == "v":  # alpha eps - sigma x0
        return (alpha * x - sigma * m) / (alpha**2 + sigma**2)
    if prediction == "flow":  # eps - x0
        return (x - sigma * m) / (alpha + sigma)
    return m


def assert_plan_is(
    plan, loop: Callable[[Array, Denoise, Array], Array], clip=None, tolerance: float = 1e-10
) -> None:
    """All states of a plan are those of `loop(x, denoise, noise)`, relative to the largest."""
    bounds = clip if isinstance(clip, tuple) else (-(clip or np.inf), clip or np.inf)
    noise, told, seen = noise_formula(len(plan)), plan.times.tolist(), []

    def network(x: Array, t: float) -> Array:
        return np.tanh(x) * (0.3 + t / told[0])

    def denoise(x: Array, i: int) -> Array:
        seen.append(x)
        m = network(x, told[i])
        return np.clip(clean(plan.prediction, x, m, plan.alphas[i], plan.sigmas[i]), *bounds)

    expected = loop(X_T, denoise, noise)
    expected = np.array([*seen, expected])
    error = np.abs(states(plan, network, X_T, noise) - expected)
    assert error.max() <= tolerance * np.abs(expected).max(), error.max(axis=1)


def shortcut_sampling(
    x: Array, alphas: Array, sigmas: Array, denoise: Denoise, noise: Array
) -> Array:
    """Chen 2023 (arXiv:2301.01206), eq. (8)."""
    for i in range(len(alphas) - 1):
        x = alphas[i + 1] * denoise(x, i) + sigmas[i + 1] * noise[i]
    return x


def ddim_eq12(
    x: Array, alphas: Array, sigmas: Array, denoise: Denoise, etas: Array, noise: Array
) -> Array:
    """Song et al. 2021 (arXiv:2010.02502), eqs. (12) and (16), with an eta for each step."""
    for i in range(len(alphas) - 1):
        at, abar_s = alphas[i] ** 2, alphas[i + 1] ** 2
        x0 = denoise(x, i)
        eps = (x - alphas[i] * x0) / sigmas[i]
        d = etas[i] * math.sqrt((1 - abar_s) / (1 - at)) * math.sqrt(1 - at / abar_s)
        x = alphas[i + 1] * x0 + math.sqrt(max(1 - abar_s - d**2, 0.0)) * eps + d * noise[i]
    return x


def half_log_snrs(alphas: Array, sigmas: Array) -> Array:
    """The solvers' lambda; +inf for clean data."""
    with np.errstate(divide="ignore"):
        return np.log(alphas) - np.log(sigmas)


def dpm_solver(
    x: Array,
    alphas: Array,
    sigmas: Array,
    denoise: Denoise,
    order: int,
    noise: Array | None = None,
    lower_order_final: bool = True,
    curvature: float = 1.0,
) -> Array:
    """DPM-Solver++ multistep (arXiv:2211.01095), midpoint type, with noise the SDE's.

    `curvature` is not theirs: a factor on D2.
    """
    lam, last, models = half_log_snrs(alphas, sigmas), len(alphas) - 2, []
    for i in range(last + 1):
        models.append(denoise(x, i))
        highest = min(order, i + 1)
        clean = sigmas[-1] == 0.0  # diffusers' final_sigmas_type="zero", or else "sigma_min"
        if i == last and (clean or (lower_order_final and last + 1 < 15)):
            highest = 1
        elif i == last - 1 and lower_order_final and last + 1 < 15:
            highest = min(highest, 2)
        alpha, h = alphas[i + 1], lam[i + 1] - lam[i]
        decay, gain = sigmas[i + 1] / sigmas[i], -alpha * (np.exp(-h) - 1.0)
        if noise is not None:
            decay, gain = decay * np.exp(-h), alpha * (1.0 - np.exp(-2.0 * h))
        x = decay * x + gain * models[i]
        if highest > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            D1 = D1_0 = (models[i] - models[i - 1]) / r0
        if highest == 2:
            x = x + 0.5 * gain * D1
        elif highest == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            D1_1 = (models[i - 1] - models[i - 2]) / r1
            D1 = D1_0 + (r0 / (r0 + r1)) * (D1_0 - D1_1)
            D2 = curvature * (D1_0 - D1_1) / (r0 + r1)
            x = x + alpha * ((np.exp(-h) - 1.0) / h + 1.0) * D1
            x = x - alpha * ((np.exp(-h) - 1.0 + h) / h**2 - 0.5) * D2
        if noise is not None:
            x = x + sigmas[i + 1] * np.sqrt(1.0 - np.exp(-2.0 * h)) * noise[i]
    return x


def unipc(x: Array, alphas: Array, sigmas: Array, denoise: Denoise, order: int) -> Array:
    """UniPC (arXiv:2302.04867), algorithms 5 and 6: B2, data prediction.

    Predictor and corrector are two steps of their own, with the corrected sample kept.
    """
    lam, last, models = half_log_snrs(alphas, sigmas), len(alphas) - 2, []
    corrected, used = x, 1
    for i in range(last + 1):
        models.append(denoise(x, i))  # of the sample as predicted
        if i > 0:
            x = _unipc_update(corrected, alphas, sigmas, lam, models, i - 1, used, correct=True)
        corrected, used = x, min(order, i + 1, last + 1 - i)
        x = _unipc_update(corrected, alphas, sigmas, lam, models, i, used, correct=False)
    return x


def _unipc_update(
    x: Array,
    alphas: Array,
    sigmas: Array,
    lam: Array,
    models: list[Array],
    i: int,
    order: int,
    correct: bool,
) -> Array:
    """`multistep_uni_c_bh_update` or `multistep_uni_p_bh_update` from level i to i + 1."""
    h, m0 = lam[i + 1] - lam[i], models[i]
    h_phi_1 = B_h = np.expm1(-h)
    x_t = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * h_phi_1 * m0
    r = [(lam[i - j] - lam[i]) / h for j in range(1, order)]
    D1s = [(models[i - j] - m0) / r[j - 1] for j in range(1, order)]
    if not correct:
        rho = [0.5] if order == 2 else []
    elif order == 1:
        rho = [0.5]
    else:
        b, h_phi_k, factorial = [], h_phi_1 / -h - 1.0, 1
        for j in range(1, order + 1):
            b.append(h_phi_k * factorial / B_h)
            factorial *= j + 1
            h_phi_k = h_phi_k / -h - 1.0 / factorial
        R = np.vander([*r, 1.0], order, increasing=True).T
        rho = np.linalg.solve(R, np.array(b)).tolist()
    if correct:
        D1s.append(models[i + 1] - m0)
    for weight, D1 in zip(rho, D1s, strict=True):
        x_t = x_t - alphas[i + 1] * B_h * weight * D1
    return x_t
