"Pseudolabels: no image twice, the fill rule against a slow reference, balance, equivariance, small and odd pools."
import math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pla_nb.pseudolabels import *

prop = settings(deadline=None, max_examples=60)
torch.set_num_threads(1)

def rand(seed): return torch.Generator().manual_seed(seed)

@st.composite
def pools(draw, max_n=40, max_c=6):
    "Scores (N,C), some with many ties, some lopsided; k for each class"
    n, c, g = draw(st.integers(1, max_n)), draw(st.integers(2, max_c)), rand(draw(st.integers(0, 2**16)))
    P = (3*torch.randn(n, c, generator=g) + draw(st.sampled_from([0., 3.]))*torch.randn(c, generator=g)).softmax(1)
    if draw(st.booleans()): P = (P*4).round()/4
    k = draw(st.one_of(st.integers(0, 12), st.lists(st.integers(0, 12), min_size=c, max_size=c).map(torch.tensor)))
    return P, k

@st.composite
def masked(draw):
    P, k = draw(pools())
    flags = lambda m: torch.tensor(draw(st.lists(st.booleans(), min_size=m, max_size=m)))
    ranked = draw(st.sets(st.integers(0, P.shape[1]-1), max_size=2))
    return P, k, flags(P.shape[1]), flags(len(P)), {c: torch.rand(len(P), generator=rand(c)) for c in ranked}

def walk(pairs, left, taken):
    "Down the sorted list of pairs: an image that is free goes to a class with room"
    out = []
    for s,n,c in sorted(pairs, key=lambda t: (-t[0], t[1], t[2])):
        if n not in taken and left[c]>0:
            taken.add(n); left[c] -= 1; out.append((n, c))
    return out

def reference(P, k, admissible, unlabeled, ranking):
    "The rule of the chapter, pair by pair"
    N, C = P.shape
    left = [(int(k) if not torch.is_tensor(k) else int(k[c])) if admissible[c] else 0 for c in range(C)]
    rows, ok, taken = [n for n in range(N) if unlabeled[n]], [c for c in range(C) if admissible[c]], set()
    got = walk([(float(ranking[c][n]), n, c) for c in ranking for n in rows], left, taken)
    for c in ranking: left[c] = 0
    yhat = {n: max(ok, key=lambda c: (float(P[n,c]), -c)) for n in rows} if ok else {}
    got += walk([(float(P[n,c]), n, c) for n,c in yhat.items()], left, taken)
    return got + walk([(float(P[n,c]), n, c) for n in rows for c in ok], left, taken)

def pairs(pl): return set(zip(pl.indices.tolist(), pl.labels.tolist()))

# the fill rule
@prop
@given(masked())
def test_equals_reference(case):
    P, k, admissible, unlabeled, ranking = case
    pl = select_topk(P, k, admissible, unlabeled, ranking)
    assert pairs(pl)==set(reference(P, k, admissible, unlabeled, ranking))
    assert len(set(pl.indices.tolist()))==len(pl)
    assert unlabeled[pl.indices].all() and admissible[pl.labels].all()

@prop
@given(pools())
def test_counts(case):
    P, k = case
    quota = torch.as_tensor(k).expand(P.shape[1])
    pl = fpl(P, k)
    assert (pl.counts<=quota).all() and len(pl)==min(len(P), int(quota.sum()))
    assert pl.counts.sum()==len(pl) and [len(pl.by_class(c)) for c in range(P.shape[1])]==pl.counts.tolist()

@prop
@given(pools(), st.randoms())
def test_permutation_equivariant(case, rnd):
    P, k = case
    P = P+1e-4*torch.rand(P.shape, generator=rand(1)) # ties are settled by position, so none here
    rows, cols = (torch.tensor(rnd.sample(range(m), m)) for m in P.shape)
    pl, qk = fpl(P[rows][:,cols], k[cols] if torch.is_tensor(k) else k), fpl(P, k)
    assert {(int(rows[n]), int(cols[c])) for n,c in pairs(pl)}==pairs(qk)

@prop
@given(pools())
def test_only_order_counts(case):
    P, k = case
    assert pairs(fpl(P, k))==pairs(fpl(4*P, k)) # exact in floats: a shift would merge small differences

def test_ordered_best_first():
    P = torch.rand(300, 5, generator=rand(0)).softmax(1)
    pl = fpl(P, 20)
    own = P.argmax(1)
    for c in range(5):
        i = pl.by_class(c)
        mine = i[own[i]==c]
        assert i.tolist()[:len(mine)]==mine.tolist() and (P[mine,c].diff()<=0).all()
    assert (pl.labels.diff()>=0).all()

def test_all_ties():
    pl = fpl(torch.full((10, 2), .5), 3)
    assert [pl.by_class(c).tolist() for c in (0,1)]==[[0,1,2],[3,4,5]]

def test_replaced_class_takes_its_topk_exclusively():
    P, u = torch.rand(50, 4, generator=rand(0)), torch.rand(50, generator=rand(1))
    pl = cap(P, 8, ranking={2: u})
    assert pl.by_class(2).tolist()==u.topk(8).indices.tolist()
    assert pl.counts.tolist()==[8]*4

@pytest.mark.parametrize('n', [1, 3, 7])
def test_pool_smaller_than_lists(n):
    pl = fpl(torch.rand(n, 5, generator=rand(n)), 4)
    assert len(pl)==n and sorted(pl.indices.tolist())==list(range(n))

def test_one_each_of_two():
    assert [fpl(torch.tensor([[.9,.1],[.8,.2]]), 1).by_class(c).tolist() for c in (0,1)]==[[0],[1]]

def test_empty():
    assert len(fpl(torch.rand(4, 2), 0))==0 and len(fpl(torch.rand(0, 2), 3))==0
    assert len(fpl(torch.rand(4, 2), 3, unlabeled=torch.zeros(4, dtype=torch.bool)))==0

def test_errors_say_what_to_do():
    P = torch.rand(6, 3)
    P[4,1] = math.nan
    with pytest.raises(ValueError, match='row 4.*check the features'): fpl(P, 2)
    P = torch.rand(6, 3)
    with pytest.raises(ValueError, match='one k or 3'): fpl(P, torch.tensor([1,2]))
    with pytest.raises(ValueError, match='k of 0 or more'): fpl(P, -1)
    with pytest.raises(ValueError, match='6 booleans'): fpl(P, 2, unlabeled=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match='indices 0 to 2'): cap(P, 2, ranking={3: torch.rand(6)})
    with pytest.raises(ValueError, match='6 scores'): cap(P, 2, ranking={1: torch.rand(5)})
    with pytest.raises(ValueError, match='starts among'): mixture(P, torch.rand(6, 2), starts=('no',))
    with pytest.raises(ValueError, match='same images'): mixture(P, torch.rand(5, 2))
    with pytest.raises(ValueError, match='3 shares'): sinkhorn(P, [1.,1.])

def test_pseudolabels_checks_itself():
    i = torch.tensor
    with pytest.raises(ValueError, match='two lists'): PseudoLabels(i([1,1]), i([0,1]), torch.ones(2), 2)
    with pytest.raises(ValueError, match='labels 0 to 1'): PseudoLabels(i([1,2]), i([0,2]), torch.ones(2), 2)
    with pytest.raises(ValueError, match='as many'): PseudoLabels(i([1,2]), i([0]), torch.ones(2), 2)
    assert len(PseudoLabels(i([]).long(), i([]).long(), torch.ones(0), 2).to('cpu'))==0

# scores
@prop
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 99))
def test_centered_scores_ignore_offsets_and_lengths(n, c, seed):
    g = rand(seed)
    V, T = torch.randn(n, 8, generator=g), torch.randn(c, 8, generator=g)
    z = centered_scores(V, T, V.mean(0))
    assert z.shape==(n, c) and z.isfinite().all()
    assert torch.allclose(z, centered_scores(V+7, T-3), atol=1e-2)
    if c>2: assert torch.allclose(z, zscore(z), atol=1e-4)

def test_two_classes_keep_confidence():
    V = torch.tensor([[1.,0.],[.6,.8],[.2,1.],[-1.,0.]])
    z = centered_scores(V, torch.tensor([[1.,0.],[-1.,0.]]), torch.zeros(2))
    assert z[0,0]>z[1,0]>z[2,0]>0>z[3,0]

# balance
@prop
@given(st.integers(2, 8), st.integers(10, 60), st.floats(.1, 8), st.integers(0, 999))
def test_sinkhorn_marginals(c, n, scale, seed):
    g = rand(seed)
    prior = torch.rand(c, generator=g)+.3
    q = sinkhorn(scale*torch.randn(n, c, generator=g), prior, rounds=2000)
    assert torch.allclose(q.sum(1), torch.ones(n), atol=1e-4) and (q>=0).all()
    assert torch.allclose(q.sum(0), n*prior/prior.sum(), rtol=.03)

@prop
@given(st.integers(0, 999), st.randoms())
def test_sinkhorn_equivariant_and_shift_invariant(seed, rnd):
    L = 3*torch.randn(20, 4, generator=rand(seed))
    rows, cols = (torch.tensor(rnd.sample(range(m), m)) for m in L.shape)
    q = sinkhorn(L, rounds=200)
    assert torch.allclose(sinkhorn(L[rows][:,cols], rounds=200), q[rows][:,cols], atol=2e-3)
    assert torch.allclose(sinkhorn(L+5*torch.randn(20, 1, generator=rand(1)) + torch.tensor([9.,0,0,-9]), rounds=200), q, atol=2e-3)

@pytest.mark.parametrize('scale', [1e-3, 1., 100., 1e4])
def test_sinkhorn_neither_over_nor_underflows(scale):
    L = scale*torch.randn(200, 10, generator=rand(0))
    L[:,3] -= 50*scale # a class that nobody wants
    q = sinkhorn(L)
    assert q.isfinite().all() and torch.allclose(q.sum(1), torch.ones(200), atol=1e-3)
    assert q[q>0].min()>=1e-20 # no denormals

def test_sinkhorn_class_without_share():
    q = sinkhorn(torch.randn(30, 3, generator=rand(0)), [.5,0,.5])
    assert q[:,1].max()==0 and torch.allclose(q.sum(0)[[0,2]], torch.tensor([15.,15.]), atol=.1)

def test_balanced_logits_stay():
    L = 3*torch.eye(4).repeat(5, 1)
    assert torch.allclose(sinkhorn(L), L.softmax(1), atol=1e-5)

# neighbours
@prop
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 99))
def test_neighbours_in_any_block(n, block, seed):
    U = F.normalize(torch.randn(n, 5, generator=rand(seed)), dim=1)
    w, i = neighbours(U, 3)
    w2, i2 = neighbours(U, 3, block=block)
    S = (U@U.T).fill_diagonal_(-9)
    assert torch.allclose(w, w2) and torch.allclose(S.gather(1, i), S.gather(1, i2), atol=1e-6)
    assert torch.allclose(S.gather(1, i), S.topk(min(3, n-1), 1).values, atol=1e-6)
    assert (i!=torch.arange(n)[:,None]).all() and torch.allclose(w.sum(1), torch.ones(n), atol=1e-5)

def test_smooth_keeps_constants():
    U = F.normalize(torch.randn(30, 4, generator=rand(0)), dim=1)
    assert torch.allclose(smooth(torch.ones(30, 3), neighbours(U)), torch.ones(30, 3), atol=1e-5)

# the mixture
def blobs(c=5, n=60, noise=.35, bad=None, seed=0):
    g = rand(seed)
    y = torch.arange(c).repeat_interleave(n)
    centre = F.normalize(torch.randn(c, 16, generator=g), dim=1)
    U = VisionSpace.fit(centre[y]+noise/4*torch.randn(len(y), 16, generator=g))(centre[y]+noise/4*torch.randn(len(y), 16, generator=g))
    z = F.one_hot(y, c).float() + torch.randn(len(y), c, generator=g)
    if bad is not None: z[:,bad] = torch.randn(len(y), generator=g)-2
    return zscore(z), U, y

def test_mixture_mends_a_misnamed_class():
    z, U, y = blobs(bad=2)
    m = mixture(z, U)
    assert (z.argmax(1)==y).float().mean()<.6 and (m.q.argmax(1)==y).float().mean()>.95
    assert (m.scores(z, U).argmax(1)==y).float().mean()>.95
    pl = m.select(10)
    assert pl.counts.tolist()==[10]*5 and (y[pl.indices]==pl.labels).float().mean()>.95
    assert torch.equal(pl.weights, m.q[pl.indices, pl.labels])

def test_mixture_keeps_the_best_start():
    z, U, _ = blobs(bad=2)
    m = mixture(z, U)
    assert set(m.objectives)==set(STARTS) and m.objective==max(m.objectives.values())==m.objectives[m.start]

def test_mixture_is_reproducible_and_ignores_order():
    z, U, _ = blobs()
    a, b, i = mixture(z, U), mixture(z, U), torch.randperm(len(z), generator=rand(0))
    assert torch.equal(a.q, b.q)
    assert torch.allclose(mixture(z[i], U[i], starts=('plain',)).q, mixture(z, U, starts=('plain',)).q[i], atol=1e-3)

@pytest.mark.parametrize('balanced', [True, False])
@pytest.mark.parametrize('n,c', [(1,2),(3,2),(4,7),(20,2)])
def test_mixture_of_odd_pools(n, c, balanced):
    g = rand(n)
    m = mixture(torch.randn(n, c, generator=g), F.normalize(torch.randn(n, 4, generator=g), dim=1), balanced=balanced)
    assert m.q.isfinite().all() and torch.allclose(m.q.sum(1), torch.ones(n), atol=1e-3)
    assert len(m.select(3))<=n

def test_large_pool_starts_from_a_sample():
    z, U, y = blobs(n=200, bad=1)
    assert (mixture(z, U, sample=300).q.argmax(1)==y).float().mean()>.95

def test_vision_space_is_that_of_plain_qr():
    "Bit for bit: stored classifiers hold these directions"
    U = F.normalize(torch.randn(60, 20, generator=rand(3)), dim=1)
    mean,Q = U.mean(0),torch.randn(20, 8, generator=rand(5))
    for _ in range(4): Q = torch.linalg.qr((U-mean).T@((U-mean)@Q)).Q
    assert torch.equal(VisionSpace.fit(U, 8, 5).basis, Q)

@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple's GPU")
def test_vision_space_on_mps():
    U = F.normalize(torch.randn(60, 20, generator=rand(3)), dim=1)
    here,there = VisionSpace.fit(U, 8),VisionSpace.fit(U.to('mps'), 8)
    torch.testing.assert_close((here.basis@here.basis.T), (there.basis@there.basis.T).cpu(), atol=1e-3, rtol=0)

def test_vision_space():
    U = torch.randn(100, 12, generator=rand(0))*torch.arange(1, 13)+3
    full, low = VisionSpace.fit(U, 12)(U), VisionSpace.fit(U, 5)(U)
    X = F.normalize(U-U.mean(0), dim=1)
    assert torch.allclose(full@full.T, X@X.T, atol=1e-3)
    assert low.shape==(100, 5) and torch.allclose(low.norm(dim=1), torch.ones(100), atol=1e-5)

# growth
TABLES = dict(resisc45=((16,140,.8), [16,29,43,57,70,84,98,112,112,112]), dtd=((16,80,.8), [16,22,29,36,43,50,57,64,64,64]),
              flowers102=((6,20,.8), [6,7,8,10,11,13,14,16,16,16]), eurosat=((16,2700,.8), [16,156,297]))

@pytest.mark.parametrize('args,table', TABLES.values(), ids=TABLES)
def test_growth_tables(args, table):
    k = growth(*args)
    assert [k(e) for e in range(0, 50, 5)][:len(table)]==table

@pytest.mark.parametrize('args,ends', [((16,29,.8),(16,23)), ((16,66,.6),(16,39)), ((16,2700,.8),(16,1000)), ((6,18,.8),(6,14))])
def test_growth_ends(args, ends):
    k = growth(*args)
    assert (k(0), k(45))==ends

@prop
@given(st.integers(1, 30), st.integers(1, 3000), st.floats(.1, 1), st.integers(1, 100))
def test_growth_never_shrinks(k0, n, rho, epochs):
    k = [growth(k0, n, rho, epochs)(e) for e in range(epochs+1)]
    assert k[0]==k0 and all(a<=b for a,b in zip(k, k[1:])) and k[-1]==max(k0, min(1000, int(rho*n+1e-9)))

# labels in a mixture

def _traded(seed, n=240, C=4):
    "Groups of images whose names are traded in the texts"
    g = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.randn(C, 32, generator=g), dim=1)
    y = torch.arange(n)%C
    U = F.normalize(centre[y]+.5*torch.randn(n, 32, generator=g)/32**.5, dim=1)
    return zscore((centre.roll(1, 0)[y]@centre.T)+.05*torch.randn(n, C, generator=g)),U,y

@pytest.mark.parametrize('seed', range(3))
def test_a_few_labels_name_the_groups(seed):
    z,U,y = _traded(seed)
    given = torch.full_like(y, -1)
    given[:8] = y[:8] # two of each class
    without,m = mixture(z, U, seed=seed),mixture(z, U, seed=seed, given=given)
    assert (without.q.argmax(1)==y).float().mean()<.1 and (m.q.argmax(1)==y).float().mean()>.95 and m.start=='labels'
    assert torch.equal(m.q[:8], F.one_hot(y[:8], 4).float())

def test_no_labels_change_nothing():
    z,U,y = _traded(0)
    a,b = mixture(z, U),mixture(z, U, given=torch.full_like(y, -1))
    assert torch.equal(a.q, b.q) and a.objectives==b.objectives

def test_labels_are_heard_in_a_large_pool():
    z,U,y = _traded(1)
    given = torch.full_like(y, -1)
    given[-8:] = y[-8:]
    m = mixture(z, U, given=given, sample=60)
    assert (m.q.argmax(1)==y).float().mean()>.95 and torch.equal(m.q[-8:], F.one_hot(y[-8:], 4).float())
