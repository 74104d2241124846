"""Answers to the exercises of notebook 42: wrong ones with what the check says, and unusual right ones."""

_SHORTEST = "weights = a.T @ np.linalg.solve(a @ a.T, targets)"

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("example-mean", "np.dot(sizes, batch_losses) / examples", "np.mean(batch_losses)", "counts as a whole one"),
    (
        "example-mean",
        "last = examples - (len(batch_losses) - 1) * batch_size",
        "last = examples % batch_size",
        "0 where they divide evenly",
    ),
    (
        "example-mean",
        "np.dot(sizes, batch_losses) / examples",
        "sum(batch_losses) / examples",
        "counts once, not for all its examples",
    ),
    (
        "example-mean",
        "np.dot(sizes, batch_losses) / examples",
        "batch_size * sum(batch_losses) / examples",
        "fewer examples than batch_size",
    ),
    (
        "example-mean",
        "[batch_size] * (len(batch_losses) - 1) + [last]",
        "[last] + [batch_size] * (len(batch_losses) - 1)",
        "the mean over 10 examples, 4 a batch: .*, expected",
    ),
    ("double-descent", "if m <= len(a)", "if True", "first wrong entry .* AᵀA has an inverse only where m ≤ N"),
    (
        "double-descent",
        _SHORTEST,
        "weights = np.zeros(m); weights[: len(a)] = np.linalg.solve(a[:, : len(a)], targets)",
        "not the shortest",
    ),
    (
        "double-descent",
        "np.linalg.solve(a @ a.T, targets)",
        "np.linalg.solve(a @ a.T + 0.1 * np.eye(len(a)), targets)",
        "nothing is added",
    ),
    ("double-descent", "(predictions - test_targets)", "(a @ weights - targets)", "the error of the training examples"),
    (
        "double-descent",
        "(predictions - test_targets) ** 2).mean()",
        "(predictions - test_targets) ** 2).sum()",
        "200 times too large",
    ),
    (
        "double-descent",
        "(predictions - test_targets) ** 2).mean()",
        "(predictions - test_targets) ** 2).mean() ** 0.5",
        "a root too many",
    ),
    ("double-descent", ":m]", "-m:]", "the last features"),
    ("double-descent", ":m]", ":]", "all features, not the first m"),
    ("double-descent", "for m in counts", "for m in sorted(counts)", "another order|first wrong entry"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "example-mean",
        """
def example_mean(batch_losses, examples, batch_size):
    total = 0.0
    for loss in batch_losses:
        here = min(batch_size, examples)
        total, examples, batch_size = total + loss * here, examples - here, batch_size
    return total / (batch_size * (len(batch_losses) - 1) + here)
""",
    ),
    (
        "example-mean",
        """
def example_mean(batch_losses, examples, batch_size):
    return torch.tensor(batch_losses).repeat_interleave(batch_size)[:examples].mean()
""",
    ),
    (
        "double-descent",
        """
def descent_errors(features, targets, test_features, test_targets, counts):
    found = []
    for m in counts:
        u, s, vt = np.linalg.svd(features[:, :m], full_matrices=False)
        found.append(float(np.mean((test_features[:, :m] @ (vt.T @ ((u.T @ targets) / s)) - test_targets) ** 2)))
    return found
""",
    ),
    (
        "double-descent",
        """
def descent_errors(features, targets, test_features, test_targets, counts):
    a, y, b, z = map(torch.from_numpy, (features, targets, test_features, test_targets))
    weights = [torch.linalg.pinv(a[:, :m]) @ y for m in counts]
    return torch.stack([torch.nn.functional.mse_loss(b[:, : len(w)] @ w, z) for w in weights])
""",
    ),
    (
        "double-descent",
        """
def descent_errors(features, targets, test_features, test_targets, counts):
    from scipy.linalg import qr, solve_triangular
    errors = np.zeros(len(counts))
    for i, m in enumerate(counts):
        a = features[:, :m]
        if a.shape[0] > a.shape[1]:
            q, r = qr(a, mode="economic")
            w = solve_triangular(r, q.T @ targets)
        else:
            q, r = qr(a.T, mode="economic")
            w = q @ solve_triangular(r, targets, trans="T")
        errors[i] = sum((test_targets - test_features[:, :m].dot(w)) ** 2) / len(test_targets)
    return errors
""",
    ),
]
