"""Answers to the exercises of notebook 54: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("keep-outputs", "output.clone()", "output", "Did the ReLU overwrite what you kept"),
    ("keep-outputs", "stack.callback(handle.remove)", "pass", "a hook is left"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
