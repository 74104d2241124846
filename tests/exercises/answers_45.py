"""Answers to the exercises of notebook 45: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("one-step-sharpness", "(loss(twin) - value)", "loss(twin)", "the loss after the step, not its rise"),
    ("one-step-sharpness", "theta.abs() * gradient", "gradient", r"Is \|θ\| in the slope"),
    ("one-step-sharpness", ", copy.deepcopy(network)", ", network", "changes its argument network"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
