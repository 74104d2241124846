"""Answers to the exercises of notebook 54: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("gradient-kernel", "kernel - rows - rows.T + kernel.mean()", "kernel", "not centered"),
    ("gradient-kernel", "(x @ x.T) * (g @ g.T)", "(x @ x.T) @ (g @ g.T)", "taken entry by entry"),
    ("gradient-kernel", "rows - rows.T +", "kernel.mean(1) - kernel.mean(0) +", "a mean lost its dimension"),
    ("gradient-kernel", " - rows.T + kernel.mean()", "", "the means of the columns are missing"),
    ("gradient-kernel", " + kernel.mean()", "", "the mean of all entries is missing"),
    (
        "gradient-kernel",
        "kernel = (x",
        "x, g = x - x.mean(0), g - g.mean(0)\n    return (x",
        "where the kernel should be",
    ),
    ("keep-outputs", "output.clone()", "output", "Did the ReLU overwrite what you kept"),
    ("keep-outputs", "output.clone()", "output.detach()", "Did the ReLU overwrite what you kept"),
    ("keep-outputs", "output, name=name", "output", "lacks the keys"),
    ("keep-outputs", "kept = {}", "kept = dict.fromkeys(names)", "order .*the layers run as"),
    ("keep-outputs", "stack.callback(handle.remove)", "pass", "a hook is left"),
    (
        "keep-outputs",
        "stack.callback(handle.remove)\n        model(x)",
        "pass\n        model(x)\n        for layer in model.modules():\n            layer._forward_hooks.clear()",
        "even if the network fails",
    ),
    (
        "keep-outputs",
        "handle.remove)",
        "model.get_submodule(name)._forward_hooks.clear)",
        "somebody else",
    ),
    ("svcca-by-hand", "s.square().cumsum(0) / s.square().sum()", "s.cumsum(0) / s.sum()", "the sum of s, not of s²"),
    (
        "svcca-by-hand",
        "(explained < variance).sum()) + 1",
        "(explained < variance).sum())",
        "reaches the share is missing",
    ),
    (
        "svcca-by-hand",
        "(explained < variance).sum()) + 1",
        "(explained < variance).sum()) + 2",
        "one direction too many",
    ),
    ("svcca-by-hand", "h - h.mean(0)", "h", "Is the layer centered|expected"),
    ("svcca-by-hand", "correlations.mean()", "correlations.square().mean()", "not their squares"),
    ("svcca-by-hand", "correlations.mean()", "correlations.sum()", "the sum, not the mean|times too large"),
    (
        "svcca-by-hand",
        "correlations.mean().item()",
        "(correlations.sum() / max(len(u.T), len(v.T))).item()",
        "the larger number",
    ),
    ("svcca-by-hand", "torch.linalg.svdvals(u.T @ v)", "torch.linalg.svdvals((u * 2).T @ v)", "2 times too large"),
    (
        "svcca-by-hand",
        "correlations = torch.linalg.svdvals(u.T @ v)",
        "correlations = torch.linalg.svdvals(torch.linalg.qr(x - x.mean(0))[0].T @ torch.linalg.qr(y - y.mean(0))[0])",
        "nothing is cut",
    ),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "gradient-kernel",
        """
def gradient_kernel(x, g):
    from sklearn.preprocessing import KernelCenterer

    return KernelCenterer().fit_transform(np.asarray(x @ x.T * (g @ g.T)))
""",
    ),
    (
        "gradient-kernel",
        """
def gradient_kernel(x, g):
    n = len(x)
    center = torch.eye(n, dtype=x.dtype) - 1 / n
    kernel = [[float(x[i] @ x[j]) * float(g[i] @ g[j]) for j in range(n)] for i in range(n)]
    return center @ torch.tensor(kernel, dtype=x.dtype) @ center
""",
    ),
    (
        "keep-outputs",
        """
def keep_outputs(model, x, names):
    found, handles = {}, []
    name_of = {layer: name for name, layer in model.named_modules()}

    def hook(layer, inputs, output):
        found[name_of[layer]] = output.detach().numpy().copy()

    try:
        for name in names:
            handles.append(dict(model.named_modules())[name].register_forward_hook(hook))
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found
""",
    ),
    (
        "keep-outputs",
        """
def keep_outputs(model, x, names):
    from functools import partial

    def keep(name, layer, inputs, output):
        kept[name] = output + 0

    kept = {}
    handles = [model.get_submodule(n).register_forward_hook(partial(keep, n)) for n in names]
    error = None
    try:
        model(x)
    except RuntimeError as e:
        error = e
    [handle.remove() for handle in handles]
    if error:
        raise error
    return kept
""",
    ),
    (
        "svcca-by-hand",
        """
def svcca_by_hand(x, y, variance):
    bases = []
    for h in (np.asarray(x), np.asarray(y)):
        values, vectors = np.linalg.eigh(np.cov(h.T))
        values, vectors = values[::-1], vectors[:, ::-1]
        count = 1
        while values[:count].sum() < variance * values.sum():
            count += 1
        bases.append(np.linalg.qr((h - h.mean(axis=0)) @ vectors[:, :count])[0])
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return [bases[0].shape[1], bases[1].shape[1], correlations.mean()]
""",
    ),
    (
        "svcca-by-hand",
        """
def svcca_by_hand(x, y, variance):
    from sklearn.decomposition import PCA

    a, b = (PCA(variance, svd_solver="full", whiten=True).fit_transform(h.numpy()) for h in (x, y))
    rho = np.linalg.svd(a.T @ b / (len(a) - 1), compute_uv=False)
    return np.array([a.shape[1], b.shape[1], rho.mean()])
""",
    ),
    (
        "svcca-by-hand",
        """
def svcca_by_hand(x, y, variance):
    from sklearn.cross_decomposition import CCA

    kept = []
    for h in (x, y):
        h = h - h.mean(0, keepdim=True)
        u, s, vt = torch.svd(h)
        share = torch.cumsum(s**2, 0) / (s**2).sum()
        kept.append((h @ vt[:, : int(torch.searchsorted(share, variance)) + 1]).numpy())
    count = min(k.shape[1] for k in kept)
    a, b = CCA(count, scale=False, max_iter=20000, tol=1e-14).fit_transform(*kept)
    correlations = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(count)]
    return kept[0].shape[1], kept[1].shape[1], torch.tensor(correlations).mean()
""",
    ),
]
