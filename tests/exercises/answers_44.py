"""Answers to the exercises of notebook 44: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("jacobian-norm", "norm(dim=1).mean()", "norm()", "one norm of all images together"),
    ("jacobian-norm", "norm(dim=1).mean()", "norm(dim=1).sum()", "a sum over the images"),
    ("jacobian-norm", "norm(dim=1).mean()", "square().sum(dim=1).mean()", "the square root is missing"),
    ("jacobian-norm", "norm(dim=1).mean()", "square().sum(dim=1).mean().sqrt()", "the root is taken after the mean"),
    ("jacobian-norm", "norm(dim=1)", "norm(p=1, dim=1)", "absolute values are added up"),
    ("jacobian-norm", "jacobians.flatten(1)", "torch.linalg.svdvals(jacobians.flatten(2))[:, :1]", "largest singular"),
    ("input-sensitivity", '"sum"', '"mean"', "the loss is averaged, not summed"),
    ("input-sensitivity", "norm(dim=1).mean()", "norm(dim=1).sum()", "a sum over the examples"),
    ("input-sensitivity", "flatten(1).norm(dim=1).mean()", "norm()", "one norm for all examples together"),
    ("input-sensitivity", "norm(dim=1)", "square().sum(dim=1)", "the squared norm"),
    ("input-sensitivity", "flatten(1).norm(dim=1).mean()", "norm(dim=1).mean()", "expected"),
    ("input-sensitivity", "x.detach().clone()", "x.mul_(1.5)", "changes its argument x"),
    ("probability-jacobian", "p * (jacobian - mean)", "p * jacobian", "the part with the sum over j is missing"),
    ("probability-jacobian", "p * (jacobian - mean)", "p * (1 - p) * jacobian", "only p_k's own logit counts"),
    ("probability-jacobian", "p * (jacobian - mean)", "jacobian - mean", "these are the derivatives of log p"),
    ("probability-jacobian", "p * (jacobian - mean)", "p * (mean - jacobian)", "the sign"),
    ("probability-jacobian", "softmax(dim=1)", "softmax(dim=0)", "Do the softmax and the sum run over the classes"),
    ("probability-jacobian", "z.softmax(dim=1)", "(z.exp() / z.exp().sum(1, keepdim=True))", "overflow"),
    ("probability-jacobian", "z.softmax(dim=1)", "z.clamp(-700, 700).softmax(dim=1)", "expected"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "jacobian-norm",
        """
def jacobian_norm(jacobians):
    return np.mean([np.sqrt(np.sum(np.square(one.numpy()))) for one in jacobians])
""",
    ),
    (
        "jacobian-norm",
        """
def jacobian_norm(jacobians):
    n = len(jacobians)
    return sum(torch.linalg.matrix_norm(one.reshape(len(one), -1)) for one in jacobians) / n
""",
    ),
    (
        "input-sensitivity",
        """
def input_sensitivity(model, x, y):
    norms = []
    for image, label in zip(x, y):
        image = image.clone()[None].requires_grad_()
        F.cross_entropy(model(image), label[None]).backward()
        norms.append(np.linalg.norm(image.grad.numpy()))
    return np.mean(norms)
""",
    ),
    (
        "input-sensitivity",
        """
def input_sensitivity(model, x, y):
    def loss(image, label):
        return F.cross_entropy(model(image.unsqueeze(0)), label.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(loss))(x, y)
    return torch.stack([gradient.norm() for gradient in gradients]).mean()
""",
    ),
    (
        "input-sensitivity",
        """
def input_sensitivity(model, x, y):
    jacobian = torch.autograd.functional.jacobian(lambda x: F.cross_entropy(model(x), y, reduction="none"), x)
    return sum(jacobian[i, i].norm().item() for i in range(len(x))) / len(x)
""",
    ),
    (
        "probability-jacobian",
        """
def probability_jacobian(z, jacobian):
    p = torch.exp(z - z.amax(dim=1, keepdim=True))
    p = p / p.sum(dim=1, keepdim=True)
    by_logits = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.bmm(by_logits, jacobian)
""",
    ),
    (
        "probability-jacobian",
        """
def probability_jacobian(z, jacobian):
    result = []
    for logits, derivatives in zip(z.numpy(), jacobian.numpy()):
        p = np.exp(logits - np.logaddexp.reduce(logits))
        rows = [p[k] * (derivatives[k] - sum(p[j] * derivatives[j] for j in range(len(p)))) for k in range(len(p))]
        result.append(np.array(rows))
    return np.array(result)
""",
    ),
]

REFUSED = [
    # exercise, source of an answer that calls what it is to be written without
    (
        "probability-jacobian",
        """
def probability_jacobian(z, jacobian):
    return torch.func.vmap(torch.func.jacrev(lambda one: one.softmax(0)))(z) @ jacobian
""",
    ),
]
