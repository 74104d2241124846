"""Answers to the exercises of notebook 52: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    (
        "permutation-test",
        "(1 + np.sum(shuffled >= observed)) / (1 +",
        "np.sum(shuffled >= observed) / (",
        "does not count",
    ),
    ("permutation-test", "(1 + np.sum", "(np.sum", "does not count, above or below"),
    ("permutation-test", "/ (1 + len(orders))", "/ len(orders)", "counts above, but not below"),
    ("permutation-test", "abs(x @ y), np.abs(x[orders] @ y)", "x @ y, x[orders] @ y", "positive r only"),
    ("permutation-test", "x, y = x - x.mean(), y - y.mean()", "pass", r"p \(seed 0\): .*, expected"),
    ("permutation-test", ">= observed", "> observed", "what equals it counts, too"),
    (
        "permutation-test",
        "(1 + np.sum(shuffled >= observed))",
        "(1 + (shuffled >= observed))",
        "is a sum, mean or norm missing",
    ),
    ("pearson-interval", "0.975", "0.95", "the quantile is one-sided"),
    ("pearson-interval", "len(x) - 3", "len(x)", "√n in place of"),
    (
        "pearson-interval",
        "np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)",
        "r - half, r + half",
        "not transformed: ",
    ),
    (
        "pearson-interval",
        "np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)",
        "np.arctanh(r) - half, np.arctanh(r) + half",
        "not transformed back",
    ),
    ("pearson-interval", "stats.norm.ppf(0.975)", "stats.t.ppf(0.975, len(x) - 2)", "Student's t"),
    ("pearson-interval", "np.sqrt((x @ x) * (y @ y))", "(len(x) - 1)", "the covariance"),
    (
        "pearson-interval",
        "r = (x @ y) / np.sqrt((x @ x) * (y @ y))",
        "r = np.cov(x, y)[0, 1] / (x.std() * y.std())",
        "n in one place",
    ),
    ("pearson-interval", "stats.norm.ppf(0.975)", "2", r"the limits \(n = 5\)"),
    (
        "pearson-interval",
        "np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)",
        "np.tanh(np.arctanh(r) + half), np.tanh(np.arctanh(r) - half)",
        "the order is reversed",
    ),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "permutation-test",
        """
def permutation_p(x, y, orders):
    observed = abs(np.corrcoef(x, y)[0, 1])
    count = 1
    for order in orders:
        if abs(np.corrcoef(x[order], y)[0, 1]) >= observed:
            count += 1
    return count / (len(orders) + 1)
""",
    ),
    (
        "permutation-test",
        """
def permutation_p(x, y, orders):
    every = np.vstack([np.arange(len(x)), orders])
    x, y = (torch.as_tensor((v - v.mean()) / v.std()) for v in (x, y))
    r = (x[torch.as_tensor(every)] * y).mean(1).abs()
    return (r >= r[0]).double().mean()
""",
    ),
    (
        "permutation-test",
        """
def permutation_p(x, y, orders):
    r = stats.pearsonr(x, y).statistic
    shuffled = [stats.pearsonr(x[order], y).statistic for order in orders.tolist()]
    return (1 + sum(one >= abs(r) or one <= -abs(r) for one in shuffled)) / (1 + len(shuffled))
""",
    ),
    (
        "pearson-interval",
        """
def pearson_interval(x, y):
    r = np.corrcoef(x, y)[0, 1]
    z, half = np.arctanh(r), 1.96 / np.sqrt(len(x) - 3)
    return [r, *np.tanh([z - half, z + half])]
""",
    ),
    (
        "pearson-interval",
        """
def pearson_interval(x, y):
    r = torch.corrcoef(torch.as_tensor(np.stack([x, y])))[0, 1]
    z = 0.5 * torch.log((1 + r) / (1 - r))
    sides = torch.tensor([0.0, -1.959964, 1.959964], dtype=torch.float64)
    return torch.tanh(z + sides / (len(x) - 3) ** 0.5)
""",
    ),
    (
        "pearson-interval",
        """
def pearson_interval(x, y):
    r = stats.pearsonr(x, y).statistic
    low, high = stats.norm.interval(0.95, loc=math.atanh(r), scale=1 / math.sqrt(len(x) - 3))
    return np.array([r, math.tanh(low), math.tanh(high)])
""",
    ),
]

REFUSED = [
    # exercise, source of an answer that calls what it is to be written without
    (
        "pearson-interval",
        """
def pearson_interval(x, y):
    found = stats.pearsonr(x, y)
    return found.statistic, *found.confidence_interval()
""",
    ),
]
