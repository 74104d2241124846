"""Answers to the exercises of notebook 11: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("delta-recursion", "[-2 * (y", "[2 * (y", r"δ\[\d\] of \d layers: first wrong entry .* Likely cause: the sign"),
    ("delta-recursion", "[-2 * (y", "[-(y", "all 2 times too small"),
    ("delta-recursion", "(1 - a[-1] ** 2)", "1", r"δ\[2\] of 2 layers.* f′ of this layer is missing"),
    ("delta-recursion", "(1 - a[-1] ** 2)", "(1 - a[-1])", "f′ is 1 − a², not 1 − a"),
    ("delta-recursion", "(1 - a[-1] ** 2)", "(1 - a[-1].tanh() ** 2)", "a is tanh.z. already: no tanh again"),
    ("delta-recursion", " * (1 - below**2)", "", r"δ\[1\] of 2 layers.* f′ of this layer is missing"),
    (
        "delta-recursion",
        "weight.T @ delta[0]",
        "(weight if len(weight) == weight.shape[1] else weight.T) @ delta[0]",
        "the weights are not transposed",
    ),
    ("delta-recursion", "return delta", "return delta[::-1]", r"δ\[\d\] of \d layers: "),
    ("delta-recursion", "W[:0:-1], a[-2:0:-1]", "W[:-2:-1], a[-2:-3:-1]", r"of \d layers, your list has|shape"),
    ("batch-gradients", " / len(Y)", "", "the sum over the examples, not their mean"),
    ("batch-gradients", " / len(Y)", " / Y.numel()", "the mean over the outputs, not their sum"),
    ("batch-gradients", "db.insert(0, D.sum(0))", "db.insert(0, D.mean(0))", "a mean over the examples, taken twice"),
    ("batch-gradients", "D.T @ A[layer - 1]", "A[layer - 1].T @ D", r"dL/dW\[\d\] of \d layers.*transposed"),
    ("batch-gradients", " * (1 - A[layer] ** 2)", "", r"dL/db\[\d\] of \d layers, \d examples: first wrong entry"),
    ("batch-gradients", "return dW, db", "return list(zip(dW, db))", "return two lists, dW and db, each of 3 tensors"),
    ("batch-gradients", "return dW, db", "return db, dW", r"dL/db\[3\] of 3 layers, 4 examples: shape"),
    ("conv-gradients", "delta.sum((0, 2, 3)),", "delta.mean((0, 2, 3)),", "dL/db: .*the mean, not the sum"),
    ("conv-gradients", "delta.sum((0, 2, 3)),", "delta.sum((2, 3)).mean(0),", "the mean over the images, not the sum"),
    ("conv-gradients", "dx[window] +=", "dx[window] =", "dL/dx: .*does each of its shares count"),
    ("conv-gradients", "d_kernel[:, :, u, v] =", "d_kernel[:, :, -1 - u, -1 - v] =", "dL/dK: .*the kernel is flipped"),
    ("conv-gradients", "weights = kernel[:", "weights = kernel.flip(2, 3)[:", "dL/dx: .*flipped once too often"),
    ("conv-gradients", ", delta, x[window])", ", delta, x[window]) / len(x)", "dL/dK: .*over the images, not the sum"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "delta-recursion",  # NumPy, a tuple, sums in place of products
        """
def deltas(W, a, y):
    W, a, y = [np.array(w) for w in W], [np.array(v) for v in a], np.array(y)
    errors = {len(W): 2 * (a[-1] - y) * (1 - a[-1]) * (1 + a[-1])}
    for l in reversed(range(1, len(W))):
        sums = [sum(W[l][k, i] * errors[l + 1][k] for k in range(len(W[l]))) for i in range(len(a[l]))]
        errors[l] = np.array(sums) / np.cosh(np.arctanh(a[l])) ** 2
    return tuple(errors[l] for l in range(1, len(W) + 1))
""",
    ),
    (
        "delta-recursion",  # from the Jacobian of the whole upper part
        """
def deltas(W, a, y):
    L, found = len(W), []
    for l in range(L):
        J = torch.diag(1 - a[l + 1] ** 2)
        for k in range(l + 1, L):
            J = torch.diag(1 - a[k + 1] ** 2) @ W[k] @ J
        found.append(2 * (a[-1] - y) @ J)
    return found
""",
    ),
    (
        "batch-gradients",  # a loop over the examples, lists for the pair
        """
def batch_gradients(W, A, Y):
    n = len(Y)
    dW, db = [torch.zeros_like(w) for w in W], [torch.zeros(len(w), dtype=w.dtype) for w in W]
    for e in range(n):
        delta = 2 * (A[-1][e] - Y[e]) * (1 - A[-1][e] ** 2)
        for l in range(len(W) - 1, -1, -1):
            dW[l] += torch.outer(delta, A[l][e]) / n
            db[l] += delta / n
            delta = W[l].T @ delta * (1 - A[l][e] ** 2)
    return [dW, db]
""",
    ),
    (
        "batch-gradients",  # columns for examples, means at the end
        """
def batch_gradients(W, A, Y):
    W, A = [w.numpy() for w in W], [v.numpy().T for v in A]
    D, dW, db = -2 * (Y.numpy().T - A[-1]) * (1 - A[-1] ** 2), (), ()
    for l in range(len(W))[::-1]:
        dW = (D @ A[l].T / D.shape[1], *dW)
        db = (D.mean(axis=1), *db)
        D = W[l].T @ D * (1 - A[l] ** 2)
    return dW, db
""",
    ),
    (
        "conv-gradients",  # convolutions of PyTorch throughout
        """
def conv_gradients(x, kernel, delta):
    d_kernel = F.conv2d(x.transpose(0, 1), delta.transpose(0, 1)).transpose(0, 1)
    return [delta.sum(dim=(0, 2, 3)), d_kernel, F.conv_transpose2d(delta, kernel)]
""",
    ),
    (
        "conv-gradients",  # NumPy, by the formula, position by position
        """
def conv_gradients(x, kernel, delta):
    x, K, d = x.numpy(), kernel.numpy(), delta.numpy()
    dK, dx, (h, w) = np.zeros(K.shape), np.zeros(x.shape), K.shape[2:]
    for i in range(d.shape[2]):
        for j in range(d.shape[3]):
            dK += np.einsum("nf,ncuv->fcuv", d[:, :, i, j], x[:, :, i : i + h, j : j + w])
            dx[:, :, i : i + h, j : j + w] += np.tensordot(d[:, :, i, j], K, 1)
    return d.sum(axis=(0, 2, 3)), dK, dx
""",
    ),
    (
        "conv-gradients",  # a product with the unfolded windows
        """
def conv_gradients(x, kernel, delta):
    size = kernel.shape[2:]
    windows, errors = F.unfold(x, size), delta.flatten(2)  # (N, C h w, positions), (N, F, positions)
    d_kernel = (errors @ windows.mT).sum(0).view(kernel.shape)
    dx = F.fold(kernel.flatten(1).T @ errors, x.shape[2:], size)
    return errors.sum((0, 2)), d_kernel, dx
""",
    ),
]

REFUSED = [
    # exercise, source of an answer that calls what it is to be written without
    (
        "delta-recursion",
        """
def deltas(W, a, y):
    z = [w @ below for w, below in zip(W, a)]
    z = [(z[0] * 0 + a[1].atanh()).requires_grad_()]
    for w in W[1:]:
        z.append(w @ z[-1].tanh())
        z[-1].retain_grad()
    (y - z[-1].tanh()).square().sum().backward()
    return [one.grad for one in z]
""",
    ),
    (
        "batch-gradients",
        """
def batch_gradients(W, A, Y):
    W = [w.clone().requires_grad_() for w in W]
    b, value = [], A[0]
    for w, above in zip(W, A[1:]):
        b.append((above.atanh() - value @ w.T).mean(0).detach().requires_grad_())
        value = (value @ w.T + b[-1]).tanh()
    (Y - value).square().sum(1).mean().backward()
    return [w.grad for w in W], [one.grad for one in b]
""",
    ),
]
