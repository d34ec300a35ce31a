"""Slow, literal twins: loops over floats, straight from the formulas. Nothing here is shared with the library."""

import itertools
import math

import torch


def dot(u, v):
    return sum(float(a) * float(b) for a, b in zip(u, v))


def one_way(us, vs, has_u, has_v, tau, groups=None):
    """-mean_i log( exp(u_i.v_i/tau) / sum_k exp(u_i.v_k/tau) ) over i that have both, k that have v, none of i's group
    but i itself."""
    groups = range(len(us)) if groups is None else groups
    losses = []
    for i in range(len(us)):
        if has_u[i] and has_v[i]:
            among = [k for k in range(len(vs)) if has_v[k] and (k == i or groups[k] != groups[i])]
            weights = [math.exp(dot(us[i], vs[k]) / tau) for k in among]
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


def cross_entropy(logits, smoothing=0.0):
    """Mean over rows, the target of row i is i; None is no candidate."""
    losses = []
    for i, row in enumerate(logits):
        total = math.log(sum(math.exp(w) for w in row if w is not None))
        logs = [v - total for v in row if v is not None]
        losses.append(-(1 - smoothing) * (row[i] - total) - smoothing * sum(logs) / len(logs))
    return sum(losses) / len(losses)


def without_kin(logits, groups):
    """None for others of the same group."""
    return [
        [None if i != j and groups[i] == groups[j] else v for j, v in enumerate(row)] for i, row in enumerate(logits)
    ]


def transposed(logits):
    return [list(row) for row in zip(*logits)]


def volume(vectors, eps=1e-6):
    """sqrt(det(Gram + eps I) + eps), the determinant by expansion over permutations."""
    count = len(vectors)
    gram = [[dot(u, v) + (eps if i == j else 0) for j, v in enumerate(vectors)] for i, u in enumerate(vectors)]
    det = 0.0
    for order in itertools.permutations(range(count)):
        swaps = sum(order[i] > order[j] for i in range(count) for j in range(i + 1, count))
        det += (-1) ** swaps * math.prod(gram[i][order[i]] for i in range(count))
    return math.sqrt(det + eps)


def area(x, y, w, eps=1e-6):
    """Heron's formula from the sides, smoothed as the library says."""
    a, b, c = (math.dist(p.tolist(), q.tolist()) for p, q in ((x, y), (x, w), (y, w)))
    half = (a + b + c) / 2
    square = max(half * (half - a) * (half - b) * (half - c), 0)
    return math.sqrt(4 * square + eps) / 2


def loop_joint(name, z, views, present, tau, groups=None):
    """The peers, from the formulas in their papers, over the samples that have everything.

    `groups`: a tuple whose members are all of the candidate's group is no negative of it.
    """
    complete, grouped = present.all(0), groups is not None
    groups = list(range(len(complete))) if groups is None else groups.tolist()
    groups = [group for group, whole in zip(groups, complete.tolist()) if whole]
    z, views = z[:, complete], views[:, complete]
    count, samples, dim = z.shape
    terms = []
    if name == "pmrl":
        for part in (z, views):
            singular, leading = [], []
            for i in range(samples):
                u, s, _ = torch.linalg.svd(part[:, i].T)
                towards = u[:, 0] @ part[:, i].mean(0)
                towards = towards if abs(towards) > 1e-6 else u[:, 0] @ part[0, i]
                leading.append(u[:, 0] if towards > 0 else -u[:, 0])
                singular.append([math.sqrt(float(v) ** 2 + 1e-6) for v in s] + [1e-3] * (count - len(s)))
            first = [[v / tau for v in row] for row in singular]
            spectrum = sum(math.log(sum(math.exp(v) for v in row)) - row[0] for row in first) / samples
            logits = [[dot(u, v) / tau for v in leading] for u in leading]
            terms += [spectrum, cross_entropy(without_kin(logits, groups))]
        return sum(terms) / 2
    for m in range(count):
        others = [k for k in range(count) if k != m]
        if name == "symile":
            shuffles = [torch.randperm(samples) for _ in others]
            logits = [[0.0] * samples for _ in range(samples)]
            for i in range(samples):
                for j in range(samples):
                    rows = [i if i == j else int(shuffle[j]) for shuffle in shuffles]
                    product = [math.prod(float(views[k, r, d]) for k, r in zip(others, rows)) for d in range(dim)]
                    logits[i][j] = dim ** ((count - 2) / 2) * dot(z[m, i], product) / tau
                    if grouped and i != j and all(groups[r] == groups[i] for r in rows):
                        logits[i][j] = None
            terms.append(cross_entropy(logits))
            continue
        score = {
            "gram": lambda i, j: -volume([z[m, i], *(views[k, j] for k in others)]),
            "triangle": lambda i, j: -area(z[m, i], views[others[0], j], views[others[1], j]),
        }[name]
        logits = without_kin([[score(i, j) / tau for j in range(samples)] for i in range(samples)], groups)
        terms += [cross_entropy(logits, 0.1), cross_entropy(transposed(logits), 0.1)]
    return sum(terms) / len(terms)


def loop_ova_ib(z, views, present, tau, beta, ridge=1e-6):
    count, samples, dim = z.shape
    made = [[[0.0] * dim for _ in range(samples)] for _ in range(count)]
    has = [[False] * samples for _ in range(count)]
    distances = []
    for m in range(count):
        for i in range(samples):
            others = [k for k in range(count) if k != m and present[k, i]]
            if present[m, i] and others:
                a = views[others, i].T
                inverse = torch.linalg.inv(a.T @ a + ridge * torch.eye(len(others), dtype=a.dtype))
                made[m][i], has[m][i] = (a @ inverse @ a.T @ views[m, i]).tolist(), True
                mean = mean_of([views[k, i] for k in others])
                distances.append(sum((float(x) - y) ** 2 for x, y in zip(z[m, i], mean)))
    terms = [symmetric(z[m], made[m], present[m], has[m], tau) for m in range(count)]
    terms = [term for term in terms if term is not None]
    return sum(terms) / len(terms) + beta * sum(distances) / len(distances)


def unit_vectors(count, samples, dim, *, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, samples, dim, generator=draw, dtype=dtype), dim=-1)


def some_present(count, samples, *, seed=0, share=0.7):
    """(M, N) bool with gaps, at least two samples complete."""
    draw = torch.Generator().manual_seed(seed + 100)
    present = torch.rand(count, samples, generator=draw) < share
    present[:, :2] = True
    return present
