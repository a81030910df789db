"""Machines with speeds that a calculation by hand can use."""

from rankwise.cost import Machine, Rate

INF = float("inf")


def machine(
    *,
    flops: float = INF,
    memory: float = INF,
    call: float = 0.0,
    slow: float = INF,
    algebra: float = INF,
    adamw: float = INF,
    **other: object,
) -> Machine:
    """What is not named takes no time."""
    product, linear = (Rate((1.0,), (speed,)) for speed in (flops, algebra))
    return Machine(
        device="cpu",
        rows=product,
        columns=product,
        inner=product,
        stacked=product,
        memory=Rate((1.0,), (memory,)),
        transcendental=slow,
        random=slow,
        orthogonal=linear,
        singular=linear,
        adamw=Rate((1.0,), (adamw,)),
        call=call,
        forward_call=call,
        backward_call=call,
        adamw_call=call,
    )._replace(**other)
