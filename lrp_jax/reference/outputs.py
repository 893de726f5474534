"""The relevance of the outputs, from which the backward pass starts.

All functions take logits z (n, classes) and a target c, which is one class or one class for each example (n,). They
return relevance (n, classes).
"""

import numpy as np


def one_hot(logits, target):
    """R_c = 1 for the target c, 0 for other classes."""
    return np.broadcast_to(np.arange(logits.shape[1]) == np.reshape(target, (-1, 1)), logits.shape).astype(float)


def logit(logits, target):
    """R_c = z_c for the target c, 0 for other classes."""
    return logits * one_hot(logits, target)


def probability(logits, target):
    """R_c = P(c) = exp z_c / sum_c' exp z_c' for the target c, 0 for other classes."""
    return _softmax(logits) * one_hot(logits, target)


def log_odds(logits, target):
    """Explains the log-odds eta_c: R_c = z_c for the target c, R_c' = -z_c' p_c' for every other class c'.

    eta_c = log P(c) / (1 - P(c)) = -log sum_{c' != c} exp(-(z_c - z_c')), and p is the softmax over the classes c'.
    The result is the mean of `pairwise` over the classes c' with weights p_c'. Its sum is sum_c' p_c' (z_c - z_c'),
    which equals eta_c plus the entropy of p.

    Source: Montavon et al. 2019, on the top layer.
    """
    p = _softmax(np.where(one_hot(logits, target) == 1, -np.inf, logits))
    return logit(logits, target) - logits * p


def pairwise(logits, target, other):
    """Explains z_c - z_c': R_c = z_c for the target c, R_c' = -z_c' for the class `other` c', 0 for other classes."""
    return logit(logits, target) - logit(logits, other)


def _softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
