"""Answers to the exercises of notebook 32: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    (
        "total-gradient-norm",
        "torch.cat([gradient.flatten() for gradient in gradients]).norm()",
        "sum(gradient.norm() for gradient in gradients)",
        "this is the sum of the layers' norms",
    ),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
