"""Answers to the exercises of notebook 22: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("softmax-floor", "np.log(", "(", "the logarithm is missing"),
    ("softmax-floor", "1 + (classes - 1) / np.e", "classes", "equal probabilities"),
    ("softmax-floor", "(classes - 1) / np.e", "classes / np.e", "the right class is counted among the wrong ones"),
    ("softmax-floor", "1 + (classes - 1) / np.e", "np.e / np.e", "0 as a logit counts as e.0 = 1"),
    ("softmax-floor", "np.log(", "-np.log(", "the sign"),
    ("cross-entropy", ".sum(1).mean()", ".sum()", "loss of 8 examples, 3 classes: .* a sum over the examples"),
    ("cross-entropy", ".sum(1).mean()", ".mean()", "loss .*the mean is taken over the classes, too"),
    ("cross-entropy", "-(right * log_p).sum(1).mean()", "-(right * log_p.exp()).sum(1).mean().log()", "of the mean"),
    (
        "cross-entropy",
        "z = z - z.amax(1, keepdim=True)\n    log_p = z - z.exp().sum(1, keepdim=True).log()",
        "log_p = z - z.exp().sum(0).log()",
        "the softmax is taken over the examples",
    ),
    ("cross-entropy", "return -(right", "return (right", "the loss .*the sign"),
    ("cross-entropy", "(log_p.exp() - right) / len(z)", "(right - log_p.exp()) / len(z)", "gradient .*the sign"),
    ("cross-entropy", "(log_p.exp() - right) / len(z)", "log_p.exp() - right", "gradient .*that of the sum"),
    ("cross-entropy", "(log_p.exp() - right) / len(z)", "log_p.exp() / len(z)", "the label's own 1 is missing"),
    ("cross-entropy", "(log_p.exp() - right) / len(z)", "-right / len(z)", "that of the softmax is left out"),
    ("cross-entropy", "z = z - z.amax(1, keepdim=True)\n", "z = z + 0\n", "about 1000 ± 1, the loss: .*an overflow"),
    ("cross-entropy", "z - z.amax(1, keepdim=True)", "z - z.amax()", "0 ± 1000, the loss: .*below 0, or an overflow"),
    (
        "cross-entropy",
        "log_p = z - z.exp().sum(1, keepdim=True).log()",
        "log_p = (z.softmax(1) + 1e-12).log()",
        "0 ± 1000, the loss: .*the logarithm of a p that is rounded to 0",
    ),
    (
        "cross-entropy",
        "z = z - z.amax(1, keepdim=True)\n",
        "z -= z.amax(1, keepdim=True)\n",
        "changes its argument z: work on a copy",
    ),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "softmax-floor",  # in float32
        """
def softmax_floor(classes):
    return torch.log(1 + (classes - 1) / torch.exp(torch.tensor(1.0)))
""",
    ),
    (
        "softmax-floor",
        """
def softmax_floor(classes):
    return -torch.log_softmax(torch.tensor([1.0] + [0.0] * (classes - 1), dtype=torch.float64), 0)[0]
""",
    ),
    (
        "softmax-floor",
        """
def softmax_floor(classes):
    wrong = sum(1 for _ in range(1, classes))
    return np.log(np.e + wrong) - 1
""",
    ),
    (
        "cross-entropy",
        """
def cross_entropy(z, y):
    z, y = z.numpy(), y.numpy()
    n = len(y)
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    gradient = np.exp(log_p)
    gradient[np.arange(n), y] -= 1
    return [-log_p[np.arange(n), y].mean(), gradient / n]
""",
    ),
    (
        "cross-entropy",
        """
def cross_entropy(z, y):
    loss, gradient = 0.0, torch.zeros_like(z)
    for i, label in enumerate(y.tolist()):
        largest = max(z[i].tolist())
        terms = [np.exp(number - largest) for number in z[i].tolist()]
        loss += (largest + np.log(sum(terms)) - z[i, label].item()) / len(y)
        for j, term in enumerate(terms):
            gradient[i, j] = (term / sum(terms) - (j == label)) / len(y)
    return loss, gradient
""",
    ),
    (
        "cross-entropy",
        """
def cross_entropy(z, y):
    n, p = len(z), torch.softmax(z, 1)
    loss = torch.logsumexp(z, 1) - z.gather(1, y[:, None])[:, 0]
    p[torch.arange(n), y] -= 1
    return loss.mean(), p / n
""",
    ),
]
