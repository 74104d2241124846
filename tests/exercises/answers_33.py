"""Answers to the exercises of notebook 33: wrong ones with what the check says, and unusual right ones."""

POWER_ITERATION = """    vector = np.random.default_rng(0).normal(size=size)
    for _ in range(most - 1):
        vector = product(vector / np.linalg.norm(vector))
        if not vector.any():
            return 0.0
    vector = vector / np.linalg.norm(vector)
    return vector @ product(vector)
    start ="""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("minimal-ratio", "rtol * values.abs().max()", "0", "zeros that rounding made positive"),
    ("minimal-ratio", "rtol * values.abs().max()", "rtol", "the tolerance is absolute, not relative"),
    ("minimal-ratio", "rtol * values.abs().max()", "1e-10 * values.abs().max()", "rtol is ignored"),
    ("minimal-ratio", "values.abs().max()", "values.max()", "to the greatest eigenvalue, not to the largest"),
    ("minimal-ratio", "values.abs().max()", "values[-1]", "to the greatest eigenvalue, not to the largest"),
    ("minimal-ratio", "(values > ", "(values.abs() > ", "negative eigenvalues count, too"),
    ("minimal-ratio", ".double().mean()", ".sum()", "how many, not which share of all"),
    ("largest-eigenvalue", "values[np.abs(values).argmax()]", "np.abs(values).max()", "the sign is lost"),
    ("largest-eigenvalue", "values[np.abs(values).argmax()]", "values.max()", "greatest eigenvalue, not that of"),
    ("largest-eigenvalue", "values[np.abs(values).argmax()]", "values[-1]", "greatest eigenvalue, not that of"),
    ("largest-eigenvalue", "range(min(most, size))", "range(size)", "product was called more than 50 times"),
    ("largest-eigenvalue", "basis.append(new / length)", "basis.append(new)", "scaled to length 1"),
    ("largest-eigenvalue", " + np.diag(beside, 1) + np.diag(beside, -1)", "", "expected 5"),
    ("largest-eigenvalue", "    start =", POWER_ITERATION, "close behind: power iteration needs many more"),
    ("largest-eigenvalue", "product(basis[-1])", "product(np.eye(size))", r"takes a vector \(60,\), it was given"),
    (
        "largest-eigenvalue",
        "        if length <= 1e-12 * scale:\n            break\n",
        "",
        "none of length 0 divided|a division by 0",
    ),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "minimal-ratio",  # NumPy, and a loop
        """
def minimal_ratio(matrix, rtol=1e-10):
    values = np.linalg.eigvalsh(matrix.numpy())
    limit = rtol * max(abs(values[0]), abs(values[-1]))
    positive = 0
    for value in values:
        if value > limit:
            positive += 1
    return positive / len(values)
""",
    ),
    (
        "minimal-ratio",  # by another solver, scaled first, as a tensor
        """
def minimal_ratio(matrix, rtol=1e-10):
    values = torch.linalg.eigh(matrix).eigenvalues
    largest = torch.linalg.vector_norm(values, ord=float("inf"))
    return torch.mean(torch.gt(values, rtol * largest).to(torch.float64))
""",
    ),
    (
        "largest-eigenvalue",  # all products kept, a projected matrix in place of the three-term recursion
        """
def largest_eigenvalue(product, size, most):
    basis, images = np.zeros((size, 0)), np.zeros((size, 0))
    vector = np.random.default_rng(1).uniform(-1, 1, size)
    for _ in range(min(most, size)):
        for _ in range(3):
            vector = vector - basis @ (basis.T @ vector)
        if np.linalg.norm(vector) < 1e-9:
            break
        basis = np.column_stack([basis, vector / np.linalg.norm(vector)])
        image = product(basis[:, -1])
        images = np.column_stack([images, image])
        vector = image / max(np.linalg.norm(image), 1e-300)
    projected = basis.T @ images
    values = np.linalg.eigvals((projected + projected.T) / 2).real
    return float(sorted(values, key=abs)[-1])
""",
    ),
    (
        "largest-eigenvalue",  # the plain three-term recursion, SciPy for the small matrix
        """
def largest_eigenvalue(product, size, most):
    from scipy.linalg import eigh_tridiagonal

    old, beta, alphas, betas = np.zeros(size), 0.0, [], []
    q = np.random.default_rng(2).standard_normal(size)
    q /= np.sqrt(q @ q)
    while len(alphas) < most:
        w = product(q) - beta * old
        alphas.append(w @ q)
        w = w - alphas[-1] * q
        beta = np.sqrt(w @ w)
        if beta < 1e-10:
            break
        betas.append(beta)
        old, q = q, w / beta
    values = eigh_tridiagonal(alphas, betas[: len(alphas) - 1], eigvals_only=True)
    return values[0] if -values[0] > values[-1] else values[-1]
""",
    ),
]
