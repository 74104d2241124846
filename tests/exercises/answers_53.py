"""Answers to the exercises of notebook 53: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("linear-cka", "x - x.mean(0), y - y.mean(0)", "x, y", "Likely cause: not centered"),
    ("linear-cka", "x - x.mean(0), y - y.mean(0)", "x - x.mean(), y - y.mean()", "one mean for all units"),
    ("linear-cka", "x - x.mean(0), y - y.mean(0)", "x - x.mean(0), y", "CKA of .*, expected"),
    (
        "linear-cka",
        "x - x.mean(0), y - y.mean(0)",
        "(x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)",
        "only center them",
    ),
    ("linear-cka", " ** 2 /", " /", "the square is missing|expected"),
    ("linear-cka", "norms = ", "norms = 2 * ", "2 times too small"),
    ("debiased-cka", ".fill_diagonal_(0)", "", "the diagonals are not set to 0"),
    ("debiased-cka", "+ sums - mixed", "- mixed", "the middle term is missing"),
    ("debiased-cka", "+ sums - mixed", "+ sums", "the last term is missing"),
    ("debiased-cka", "2 / (n - 2)", "1 / (n - 2)", "the last term lacks its 2"),
    ("debiased-cka", "/ (n * (n - 3))", "/ (n - 1) ** 2", "in place of n"),
    ("debiased-cka", "/ (n * (n - 3))", "", "10 times too large"),
    (
        "debiased-cka",
        "((k * m).sum() + sums - mixed) / (n * (n - 3))",
        "((k - k.mean(0)) * (m - m.mean(0))).sum() / (n - 1) ** 2",
        "HSIC of 5 × 3 and 5 × 5",
    ),
    ("debiased-cka", "hsic(m, m)).sqrt()", "hsic(m, m))", "the root is missing"),
    ("debiased-cka", "(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()", "hsic(k, m).item()", "is not divided"),
    ("debiased-cka", "hsic(m, m)).sqrt()).item()", "hsic(m, m)).sqrt()).clamp(0).item()", "it may be negative"),
    ("debiased-cka", "return hsic(k, m).item(),", "return max(hsic(k, m).item(), 0.0),", "HSIC.*it may be negative"),
    (
        "debiased-cka",
        "(x.double(), y.double()):\n        h = h - h.mean(0)",
        "(x, y):",
        "float32",
    ),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "linear-cka",
        """
def linear_cka(x, y):
    x, y = np.asarray(x), np.asarray(y)
    center = np.eye(len(x)) - 1 / len(x)
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
""",
    ),
    (
        "linear-cka",
        """
def linear_cka(x, y):
    from sklearn.preprocessing import StandardScaler

    x, y = (torch.as_tensor(StandardScaler(with_std=False).fit_transform(h)) for h in (x, y))
    total = sum((a @ b) ** 2 for a in x.T for b in y.T)
    return total / (sum((a @ b) ** 2 for a in x.T for b in x.T) * sum((a @ b) ** 2 for a in y.T for b in y.T)) ** 0.5
""",
    ),
    (
        "debiased-cka",
        """
def debiased_cka(x, y):
    x, y = (np.asarray(h, dtype=float) - np.asarray(h, dtype=float).mean(0) for h in (x, y))
    n = len(x)

    def hsic(a, b):
        d, e = (a**2).sum(1), (b**2).sum(1)
        total = ((a.T @ b) ** 2).sum() - n / (n - 2) * d @ e + d.sum() * e.sum() / (n - 1) / (n - 2)
        return total / n / (n - 3)

    return [hsic(x, y), hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))]
""",
    ),
    (
        "debiased-cka",
        """
def debiased_cka(x, y):
    n = len(x)
    kernels_ = []
    for h in (x, y):
        h = h.double() - h.double().mean(0)
        k = h @ h.T
        k = k - torch.diag(k.diag())
        rows, total = k.sum(1) / (n - 2), k.sum() / (n - 1) / (n - 2)
        k = k - rows[:, None] - rows + total
        kernels_.append(k - torch.diag(k.diag()))
    k, m = kernels_
    k_m, k_k, m_m = ((a * b).sum() / (n * (n - 3)) for a, b in ((k, m), (k, k), (m, m)))
    return torch.stack([k_m, k_m / (k_k * m_m) ** 0.5])
""",
    ),
    (
        "debiased-cka",
        """
def debiased_cka(x, y):
    one, n = np.ones(len(x)), len(x)
    k, m = (h @ h.T for h in (np.array(x, dtype=float), np.array(y, dtype=float)))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    found = []
    for a, b in ((k, m), (k, k), (m, m)):
        sums = one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2))
        found.append((np.trace(a @ b) + sums - 2 / (n - 2) * one @ a @ b @ one) / (n * (n - 3)))
    return found[0], found[0] / math_sqrt(found[1] * found[2])


def math_sqrt(value):
    return value**0.5
""",
    ),
]
