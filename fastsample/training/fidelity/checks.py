"""Refuses meaningless combinations of the fidelity loss's arguments, and splits batches."""

from __future__ import annotations

from fastsample._support.checks import warn_user
from fastsample.distances.discrepancy import Discrepancy
from fastsample.distances.names import PAIRED
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS
from fastsample.training.fidelity.chain import GradientPath
from fastsample.training.fidelity.chain_plans import ChainPlans
from fastsample.training.fidelity.names import Start


def check_combination(plans: ChainPlans, discrepancy: Discrepancy, chains: int) -> None:
    """Raise for arguments that contradict each other, whatever the model."""
    distance, start = discrepancy.distance, plans.start
    if distance in PAIRED and start == "prior":
        raise ValueError(
            f'FidelityLoss: start must come from x0 with distance="{distance}", got "prior", '
            "where a sample has nothing to do with the x0 that it is compared with: the best "
            'chain gives the mean of the data; use distance="energy", or start="noised"'
        )
    if distance in PAIRED and chains > 1:
        raise ValueError(f'FidelityLoss: chains must be 1 with distance="{distance}", got {chains}')
    if start == "noised" and isinstance(plans.steps, Plan):
        raise ValueError(
            'FidelityLoss: steps must be a number, or times, with start="noised", whose chains '
            "begin at one of several times, got a Plan"
        )
    if isinstance(plans.steps, Plan) and plans.steps.is_guided:
        raise ValueError(
            "FidelityLoss: steps must be an unguided Plan, got a guided one; chains are trained "
            "without guidance"
        )
    method = METHODS.get(plans.method)
    if start == "noised" and method is not None and method.chooses_times:
        raise ValueError(
            f'FidelityLoss: method must not be "{plans.method}" with start="noised", '
            "whose chains begin at one of several times"
        )
    if chains > 1 and start == "inverted":
        raise ValueError(f'FidelityLoss: chains must be 1 with start="inverted", got {chains}')


def check_plan(plan: Plan, start: Start, path: GradientPath, chains: int) -> None:
    """Raise for a plan that does not fit the other arguments.

    Warns:
        UserWarning: a Jacobian-free gradient of a multistep method.
    """
    if chains > 1 and start != "prior" and not plan.is_stochastic:
        raise ValueError(
            f"FidelityLoss: chains must be 1 where they begin at one point and {plan.method} "
            f"of {len(plan)} steps adds no noise, got {chains}; pass eta=1.0 or "
            'method="ancestral", and 2 steps or more'
        )
    if path.gradient == "jacobian_free" and plan.needs_history:
        warn_user(
            f"FidelityLoss: the jacobian_free gradient of the multistep {plan.method} led away "
            "from the data where it was tried: its weights of earlier x0's are negative; use "
            'gradient="full", or a method of one step such as "ddim"'
        )
    if start == "inverted" and plan.is_stochastic:
        raise ValueError(
            f'FidelityLoss: method must be deterministic with start="inverted", got {plan.method}'
        )


def starting_count(
    batch: int,
    world: int,
    *,
    subset: int | None,
    start: Start,
    discrepancy: Discrepancy,
    chains: int,
) -> int:
    """Return how many samples of this process's share of the batch start chains.

    Args:
        batch: samples of this process.
        world: number of processes.
        subset: samples to start chains for, of all processes together; None is as many as fit.
        start: where the chains start.
        discrepancy: how the samples are compared with data.
        chains: chains per x0.

    Raises:
        ValueError: a batch that is too small, or a subset that the processes cannot share.
    """
    total = batch * world
    # When set distances are used, chains that start from x0 are compared with the batch's other x0.
    needs_rest = start != "prior" and not discrepancy.is_paired
    default = batch // 2 * world if needs_rest else total
    count = default if subset is None else subset
    if needs_rest and not 0 < count <= (batch - 1) * world:
        raise ValueError(
            f'FidelityLoss: subset must leave samples to compare with for start="{start}" '
            f"and a batch of {total}, got {count}"
        )
    if count % world or count > total:
        raise ValueError(
            f"FidelityLoss: subset must be a multiple of the {world} processes and at most the "
            f"batch of {total}, got {count}"
        )
    if not discrepancy.is_paired and count * chains < 2:
        raise ValueError(f"FidelityLoss: subset must be at least 2 to compare sets, got {count}")
    return count // world
