"""Answers to the exercises of notebook 12: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("faulty-loop", "                optimizer.zero_grad()\n", "", "epochs of 40 images: .*Which gradients"),
    (
        "faulty-loop",
        "            for rows in torch.arange(len(train)).split(20):\n                optimizer.zero_grad()\n",
        "            optimizer.zero_grad()\n            for rows in torch.arange(len(train)).split(20):\n",
        "the weights after 1 epochs of 40 images: .*Which gradients does a step of your loop use",
    ),
    (
        "faulty-loop",
        "loss.backward()\n",
        "loss.backward()\n                optimizer.zero_grad()\n",
        "the network has not been trained",
    ),
    ("faulty-loop", "share_correct(model, validation)", "share_correct(model, test)", "other test labels you select"),
    ("faulty-loop", "share_correct(model, validation)", "share_correct(model, train)", "not depend on the validation"),
    (
        "faulty-loop",
        "share_correct(best_model, test)",
        "best_accuracy",
        "that is the accuracy on the images that it was chosen on",
    ),
    ("faulty-loop", "if accuracy > best_accuracy", "if accuracy < abs(best_accuracy)", "the selected rate, with"),
    ("update-step", "p - lr *", "p + lr *", r"plain SGD\).*the step goes up, along the gradient"),
    ("update-step", "g + weight_decay * p", "g", r"weight decay\).*decay is not part of the gradient"),
    ("update-step", "g + weight_decay * p", "g - weight_decay * p", r"weight decay\).*Check that the weight decay is"),
    ("update-step", "p - lr *", "p - weight_decay * p - lr *", "Check that the weight decay is part of the gradient"),
    (
        "update-step",
        "    g = g + weight_decay * p\n",
        "    p, grown = p - weight_decay * p, p\n",
        "the decay is not multiplied by the rate",
    ),
    ("update-step", "momentum * buffer + g\n", "momentum * buffer + (1 - momentum) * g\n", "damped by 1 − μ"),
    ("update-step", "g if buffer is None else", "0 * g if buffer is None else", "the buffer is the gradient, not 0"),
    ("update-step", "if nesterov else buffer", "if False else buffer", "Nesterov's look-ahead is missing"),
    (
        "update-step",
        "    buffer = g if buffer is None else momentum * buffer + g\n    return p - lr * (g + momentum * buffer",
        "    old, buffer = buffer, g if buffer is None else momentum * buffer + g\n"
        "    return p - lr * (g + momentum * (g if old is None else old)",
        "look-ahead is missing, or takes the old buffer",
    ),
    ("update-step", "g = g + weight_decay * p", "g += weight_decay * p", "changes its argument g: work on a copy"),
    (
        "update-step",  # decoupled: right by itself, wrong with momentum
        "    g = g + weight_decay * p\n    buffer = g if buffer is None else momentum * buffer + g\n",
        "    buffer = g if buffer is None else momentum * buffer + g\n    p = p - lr * weight_decay * p\n",
        r"decay, momentum and Nesterov\)",
    ),
    ("adam-step", "m = betas[0] * m + (1 - betas[0]) * g", "m = betas[0] * m + g", "the factor 1 − β1 is missing"),
    ("adam-step", "m = betas[0] * m + (1 - betas[0]) * g", "m = (1 - betas[0]) * m + betas[0] * g", "are exchanged"),
    ("adam-step", "* g**2", "* g", "v after step 5: .*the gradient is not squared"),
    ("adam-step", "betas[1] * v + (1 - betas[1])", "betas[0] * v + (1 - betas[0])", "that is β1 where β2 belongs"),
    (
        "adam-step",
        "m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)",
        "m_hat, v_hat = m, v",
        "p after step 5: .*the bias is not corrected",
    ),
    ("adam-step", "v / (1 - betas[1] ** t)", "v", "the bias of v is not corrected"),
    ("adam-step", "m / (1 - betas[0] ** t)", "m", "the bias of m is not corrected"),
    ("adam-step", "(v_hat.sqrt() + eps)", "(v_hat + eps).sqrt()", "ε is inside the root"),
    ("adam-step", "v_hat.sqrt()", "v_hat", "the root is missing"),
    ("adam-step", "** t)", "** (t + 1))", "t is counted from 1 already"),
    ("adam-step", "p - lr", "p + lr", "the step goes up"),
    ("adam-step", ", m, v\n", ", m_hat, v_hat\n", "keep m as it is"),
    (
        "faulty-loop",
        "return best_rate, best_model, share_correct(best_model,",
        "return best_rate, model, share_correct(model,",
        "weights of the returned network: .*trained with the selected rate",
    ),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "faulty-loop",  # the update by hand, gradients from autograd.grad, all networks kept
        """
def select_rate(build, rates, train, validation, test, epochs):
    networks = {}
    for rate in rates:
        networks[rate] = build()
        parameters = list(networks[rate].parameters())
        for _ in range(epochs):
            for x, y in zip(train.x.split(20), train.y.split(20), strict=True):
                slopes = torch.autograd.grad(F.cross_entropy(networks[rate](x), y), parameters)
                with torch.no_grad():
                    for p, slope in zip(parameters, slopes, strict=True):
                        p -= rate * slope
    best = max(rates, key=lambda rate: share_correct(networks[rate], validation))
    return [best, networks[best], share_correct(networks[best], test)]
""",
    ),
    (
        "faulty-loop",  # the gradients taken away at the end of a step, accuracy as a tensor
        """
def select_rate(build, rates, train, validation, test, epochs):
    trained = []
    for rate in rates:
        model = build()
        for epoch in range(epochs):
            for start in range(0, len(train.y), 20):
                logits = model(train.x[start : start + 20])
                F.nll_loss(logits.log_softmax(1), train.y[start : start + 20]).backward()
                for p in model.parameters():
                    p.data = p.data - rate * p.grad
                    p.grad = None
        trained.append((model(validation.x).argmax(1) == validation.y).double().mean())
        if trained[-1] == max(trained) and trained.count(trained[-1]) == 1:
            chosen = rate, model
    return *chosen, (chosen[1](test.x).argmax(1) == test.y).double().mean()
""",
    ),
    (
        "update-step",  # NumPy, a list
        """
def sgd_update(p, g, buffer, lr, weight_decay, momentum, nesterov):
    p, g = np.array(p), np.array(g)
    g = g + weight_decay * p
    b = g if buffer is None else momentum * np.array(buffer) + g
    if nesterov:
        return [p - lr * g - lr * momentum * b, b]
    return [p - lr * b, b]
""",
    ),
    (
        "update-step",  # no buffer without momentum, changes of copies in place
        """
def sgd_update(p, g, buffer, lr, weight_decay, momentum, nesterov):
    p, step = p.clone(), g.clone().add_(p, alpha=weight_decay)
    if momentum:
        buffer = step.clone() if buffer is None else buffer.clone().mul_(momentum).add_(step)
        step = step.add_(buffer, alpha=momentum) if nesterov else buffer
    return p.sub_(lr * step), buffer
""",
    ),
    (
        "adam-step",  # NumPy, a list
        """
def adam_update(p, g, m, v, t, lr, betas, eps):
    p, g, m, v = (np.asarray(one) for one in (p, g, m, v))
    one, two = betas
    m, v = m + (1 - one) * (g - m), v + (1 - two) * (g * g - v)
    return [p - lr * (m / (1 - one**t)) / (np.sqrt(v / (1 - two**t)) + eps), m, v]
""",
    ),
    (
        "adam-step",  # the corrections drawn together, as PyTorch does
        """
def adam_update(p, g, m, v, t, lr, betas, eps):
    m = torch.lerp(m, g, 1 - betas[0])
    v = v.mul(betas[1]).addcmul(g, g, value=1 - betas[1])
    root = v.sqrt() / (1 - betas[1] ** t) ** 0.5
    return p.addcdiv(m, root + eps, value=-lr / (1 - betas[0] ** t)), m, v
""",
    ),
]
