"""Answers to the exercises of notebook 12: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("update-step", "g + weight_decay * p", "g", r"\(weight decay\): .*Check that the weight decay is part"),
    ("update-step", "momentum * buffer + g\n", "momentum * buffer + (1 - momentum) * g\n", "Check the buffer"),
    ("update-step", "if nesterov else buffer", "if False else buffer", "Check the direction"),
    ("update-step", "g = g + weight_decay * p", "g += weight_decay * p", "changes its argument g: work on a copy"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
