"""Slow, literal twins: loops over floats, straight from the formulas. Nothing here is shared with the library."""

import math

import torch


def dot(u, v):
    return sum(float(a) * float(b) for a, b in zip(u, v))


def one_way(us, vs, has_u, has_v, tau):
    """-mean_i log( exp(u_i.v_i/tau) / sum_k exp(u_i.v_k/tau) ) over i that have both, k that have v."""
    losses = []
    for i in range(len(us)):
        if has_u[i] and has_v[i]:
            weights = [math.exp(dot(us[i], vs[k]) / tau) for k in range(len(vs)) if has_v[k]]
            losses.append(-math.log(math.exp(dot(us[i], vs[i]) / tau) / sum(weights)))
    return (sum(losses) / len(losses), len(losses)) if losses else (0.0, 0)


def symmetric(us, vs, has_u, has_v, tau):
    """None where no sample has both."""
    there, count = one_way(us, vs, has_u, has_v, tau)
    back, _ = one_way(vs, us, has_v, has_u, tau)
    return (there + back) / 2 if count else None


def mean_of(vectors, weights=None):
    weights = weights or [1.0] * len(vectors)
    return [sum(w * float(v[d]) for w, v in zip(weights, vectors)) / sum(weights) for d in range(len(vectors[0]))]


def loop_anchor(name, views, present, anchor=None, weights=None):
    """For every modality a list of N vectors, and of N bools: who has an anchor."""
    count, samples, dim = views.shape
    zero = [0.0] * dim
    made = [[zero] * samples for _ in range(count)]
    has = [[False] * samples for _ in range(count)]
    for m in range(count):
        for i in range(samples):
            here = [k for k in range(count) if present[k, i]]
            if name in ("centrobind", "weighted", "learned") and len(here) >= 2:
                w = [1.0 if weights is None else weights[k] for k in here]
                made[m][i], has[m][i] = mean_of([views[k, i] for k in here], w), True
            elif name == "leave_one_out" and [k for k in here if k != m]:
                made[m][i], has[m][i] = mean_of([views[k, i] for k in here if k != m]), True
            elif name in ("fabind", "random") and m != anchor and anchor in here:
                made[m][i], has[m][i] = views[anchor, i].tolist(), True
            elif name == "unimodal" and m in here:
                made[m][i], has[m][i] = views[m, i].tolist(), True
    return made, has


def loop_objective(name, z, views, present, tau, anchor=None, weights=None):
    """The whole loss of an objective, from (M, N, D) tensors of unit vectors."""
    count = len(z)
    if name == "all_pairs":
        terms = [
            symmetric(z[a], views[b], present[a], present[b], tau) for a in range(count) for b in range(count) if a != b
        ]
    else:
        made, has = loop_anchor(name, views, present, anchor, weights)
        terms = [symmetric(z[m], made[m], present[m], has[m], tau) for m in range(count)]
    terms = [term for term in terms if term is not None]
    return sum(terms) / len(terms)


def unit_vectors(count, samples, dim, *, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, samples, dim, generator=draw, dtype=dtype), dim=-1)


def some_present(count, samples, *, seed=0, share=0.7):
    """(M, N) bool with gaps, at least two samples complete."""
    draw = torch.Generator().manual_seed(seed + 100)
    present = torch.rand(count, samples, generator=draw) < share
    present[:, :2] = True
    return present
