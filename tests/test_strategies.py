"Strategies, class shares, and what trains on them: rules against slow references, and a budget that is kept."
import copy, math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pla_nb.calibrate import CalibratedLoss
from pla_nb.margin import partial_loss
from pla_nb.pseudolabels import (CPL, FPL, GRIP, IFPL, UPL, PseudoLabels, Strategy, candidate_sets, estimate_prior, neighbours,
    round_quota, select_topk, strategy)
from pla_nb.pseudolabels import _among
from pla_nb.train import UNEVEN, CAPConfig, Ensemble, Evidence, HeadLearner, Learner, first_labels, fit_head, fit_strategy, unevenness

prop = settings(deadline=None, max_examples=40)
torch.set_num_threads(1)
NAMES = ['fpl','upl','ifpl','grip','cpl']

def rand(seed): return torch.Generator().manual_seed(seed)

@st.composite
def pools(draw):
    "Probabilities (N,C) without ties, admissible classes, unlabeled images"
    n, c, g = draw(st.integers(1, 30)), draw(st.integers(2, 6)), rand(draw(st.integers(0, 2**16)))
    P = (2*torch.randn(n, c, generator=g)).softmax(1)
    ok = torch.tensor(draw(st.lists(st.booleans(), min_size=c, max_size=c).filter(any)))
    return P, ok, torch.rand(n, generator=g)<.8

# candidates
@prop
@given(pools(), st.floats(0, 1), st.floats(0, 1))
def test_candidate_sets_by_definition(case, alpha, beta):
    P = case[0]
    S = candidate_sets(P, alpha, beta)
    tau, h = torch.quantile(P.max(1).values, alpha), torch.quantile(P, beta, dim=0)
    for n,p in enumerate(P):
        A, total = set(), 0.
        for c in p.argsort(descending=True).tolist():
            A.add(c); total += float(p[c])
            if total>tau+1e-6: break
        near = {c for c in range(len(p)) if abs(float(p[c]-h[c]))<1e-6} # on the edge either will do
        want = {c for c in A if p[c]>=h[c]}
        assert set(S[n].nonzero()[:,0].tolist())-near==want-near or abs(total-float(tau))<1e-4 or any(abs(float(p.sort(descending=True).values[:i].sum()-tau))<1e-5 for i in range(1, len(p)))

@prop
@given(pools(), st.integers(1, 3), st.integers(1, 3))
def test_cpl_fills_its_classes_best_pair_first(case, rounds, r):
    P, ok, free = case
    s, r = CPL(rounds, .6, .3), min(r, rounds)
    pl = s.select(P, r, ok, free)
    Q = _among(P, ok, free)[0] # the same floats: at the threshold a last bit decides
    rows, cols = free.nonzero()[:,0], ok.nonzero()[:,0]
    if not len(rows): assert len(pl)==0; return
    S = candidate_sets(Q[rows][:,cols], .6, .3)
    k, taken, room = round_quota(r, rounds, len(rows), len(cols)), {}, [0]*P.shape[1]
    for v,i,c in sorted(((-float(Q[i,c]), int(i), int(c)) for a,i in enumerate(rows) for b,c in enumerate(cols) if S[a,b])):
        if i not in taken and room[c]<k: taken[i] = c; room[c] += 1
    assert dict(zip(pl.indices.tolist(), pl.labels.tolist()))==taken
    for m,i in enumerate(pl.indices.tolist()):
        got = pl.candidates[m]
        assert set(got.nonzero()[:,0].tolist())=={int(c) for c in cols[S[rows.tolist().index(i)]]}
        assert got[pl.labels[m]]>0
        if r>1: assert set(got.unique().tolist())<={0.,1.}
        else: assert float(got.sum())==pytest.approx(1, abs=1e-5)

def test_candidates_follow_and_are_checked():
    i = torch.tensor([1,2])
    pl = PseudoLabels(i, torch.tensor([0,1]), torch.ones(2), 2, torch.eye(2))
    assert torch.equal(pl.to('cpu').candidates, torch.eye(2)) and FPL().select(torch.rand(3, 2)).to('cpu').candidates is None
    with pytest.raises(ValueError, match='2 x 2 matrix'): PseudoLabels(i, torch.tensor([0,1]), torch.ones(2), 2, torch.eye(3))
    for bad in (dict(alpha=1.1), dict(beta=-.1)):
        with pytest.raises(ValueError, match='from 0 to 1'): candidate_sets(torch.rand(4, 3), **bad)

# strategies
@pytest.mark.parametrize('name', NAMES)
@prop
@given(case=pools())
def test_every_strategy_keeps_the_rules(name, case):
    P, ok, free = case
    s = strategy(name)
    assert isinstance(s, Strategy) and s.name==name
    for r in (1, s.rounds):
        pl = s.select(P, r, ok, free)
        assert free[pl.indices].all() and ok[pl.labels].all() and len(pl.indices.unique())==len(pl)

@pytest.mark.parametrize('name', NAMES)
def test_seen_columns_do_not_matter(name):
    P, ok = torch.rand(60, 5, generator=rand(0)).softmax(1), torch.tensor([True,False,True,True,False])
    other = P*torch.where(ok, 1., torch.rand(60, 5, generator=rand(1)))
    a,b = (strategy(name).select(Q, 3, ok) for Q in (P, other))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)

def test_rounds():
    P = torch.rand(100, 5, generator=rand(0)).softmax(1)
    for s in (FPL(4), UPL(4), IFPL(4)):
        pl, want = s.select(P, s.rounds), select_topk(P, 4)
        assert torch.equal(pl.indices, want.indices) and torch.equal(pl.labels, want.labels)
    assert [len(GRIP().select(P, r)) for r in (1,5,10)]==[10,50,100]
    assert GRIP().select(P, 10).counts.tolist()==[20]*5

@prop
@given(st.integers(1, 12), st.integers(1, 500), st.integers(1, 20))
def test_quota_grows_to_a_full_share(rounds, n, c):
    k = [round_quota(r, rounds, n, c) for r in range(1, rounds+1)]
    assert all(a<=b for a,b in zip(k, k[1:])) and 1<=k[0] and k[-1]<=max(1, n//c)
    if n%rounds==0: assert k[-1]==max(1, n//c)

def test_strategies_that_cannot_be():
    with pytest.raises(ValueError, match='fit_head'): strategy('cap')
    with pytest.raises(ValueError, match="got 'magic'"): strategy('magic')
    with pytest.raises(ValueError, match='probabilities'): FPL().select(torch.randn(9, 3)-5)

# class shares
def blobs(sizes, noise=.35, seed=0, d=16):
    "Unit-norm V, T, U and labels of groups of these sizes; texts are noisy"
    g = rand(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    A,B = r(len(sizes), d),r(len(sizes), 24)
    return [F.normalize(x, dim=1) for x in (A[y]+1.5*noise*r(len(y), d), A+.3*r(len(sizes), d), B[y]+noise*r(len(y), 24))]+[y]

def scores(sizes, **kw):
    V,T,U,y = blobs(sizes, **kw)
    ev = Evidence.fit(V, T, U, 16)
    return ev.text(V), ev.vision(V, U), torch.tensor(sizes)/sum(sizes)

@pytest.mark.parametrize('sizes', [[200,90,40,20], [20,40,90,200], [60,60,60,60], [150,150,10,10,10]])
def test_shares_are_found(sizes):
    z,u,true = scores(sizes)
    p, off = estimate_prior(z, u), lambda p: float((p-true).abs().sum()/2)
    assert float(p.sum())==pytest.approx(1, abs=1e-5) and off(p)<max(.05, .5*off(torch.full_like(true, 1/len(true))))

def test_shares_follow_the_order_of_classes_and_not_of_images():
    z,u,_ = scores([100,50,20])
    p, c, i = estimate_prior(z, u), torch.tensor([2,0,1]), torch.randperm(170, generator=rand(0))
    assert torch.allclose(estimate_prior(z[:,c], u), p[c], atol=1e-3) and torch.allclose(estimate_prior(z[i], u[i]), p, atol=2e-2)

def test_no_class_is_given_up():
    z,u,_ = scores([100,100])
    z = torch.cat([z, torch.full((200,1), -9.)], 1)
    p = estimate_prior(z, u)
    assert p[2]>=.1/3*.9 and float(p.sum())==pytest.approx(1, abs=1e-5)

def test_a_sample_gives_about_the_same_shares():
    z,u,true = scores([900,400,200])
    assert (estimate_prior(z, u, sample=500)-true).abs().max()<.08
    with pytest.raises(ValueError, match='same images'): estimate_prior(z, u[:9])

# the loop with shares, and what it can be given
V,T,U,y = blobs([40]*6, noise=.8)
FAST = dict(epochs=3, batch_size=64, dim=12, hidden=8)
def head(cfg=None, **kw): return fit_head(V, T, U, CAPConfig(**FAST, **(cfg or {})), progress=False, **kw)
def same(a, b): return all(torch.equal(x, z) for x,z in zip(a.head.state_dict().values(), b.head.state_dict().values(), strict=True))

def test_an_even_pool_gets_equal_shares():
    a,b = head(), head(dict(prior=[2.]*6))
    assert same(a, head(dict(prior='uniform'))) and head(dict(prior='estimate')).prior is not None
    assert a.prior is None and torch.allclose(b.prior, torch.full((6,), 1/6)) and torch.equal(a.selected.indices, b.selected.indices)
    assert torch.allclose(a.last, b.last, atol=1e-3) and torch.allclose(a.M, b.M, atol=1e-3)

def test_shares_reach_labels_selection_and_result():
    sizes = [120,60,30,15,8,7]
    v,t,u,yl = blobs(sizes, noise=.6)
    share = torch.tensor(sizes)/240
    run = lambda p: fit_head(v, t, u, CAPConfig(**FAST, prior=p, k=8), progress=False)
    equal,est,true = run('uniform'),run('estimate'),run(share.numpy())
    assert same(run('auto'), est) and unevenness(est.prior)>UNEVEN>unevenness(torch.full((6,), 1/6))
    told = fit_head(v, t, u, CAPConfig(**FAST, k=8), prior=share, progress=False) # shares that are there already are not asked for again
    assert same(told, true) and told.head.cfg.prior=='auto'
    acc = lambda f: float((f.last.argmax(1)==yl).float().mean())
    assert torch.allclose(true.prior, share) and torch.allclose(true.last.mean(0), share, atol=.02) and torch.allclose(est.last.mean(0), est.prior, atol=.02)
    assert true.selected.counts.tolist()==sorted(true.selected.counts.tolist(), reverse=True) and true.selected.counts[0]>10*true.selected.counts[5]
    assert min(acc(est), acc(true))>acc(equal)+.2

@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any))
def test_unevenness_is_the_part_that_would_have_to_move(sizes):
    n,C = torch.tensor(sizes).double(),len(sizes)
    moved = (n-n.sum()/C).clamp(min=0).sum()/n.sum()
    assert unevenness(n/n.sum())==pytest.approx(float(moved), abs=1e-9) and 0<=unevenness(n/n.sum())<=1-1/C+1e-9

def test_shares_of_seen_classes_are_not_asked_for():
    i = (y<2).nonzero()[:,0]
    for p in ('estimate', [9.,9.,1.,1.,1.,1.]):
        fit = head(dict(prior=p), labeled=(i, y[i]), seen=[0,1])
        assert (fit.prior[:2]==0).all() and float(fit.prior.sum())==pytest.approx(1) and not fit.M[:2].any()
        assert not fit.last[y>=2][:,:2].any()

@pytest.mark.parametrize('prior,words', [([1.]*5, 'prior as 6 shares'), ([1.]*5+[-1.], 'none negative'), ([0.]*6, 'no share in prior')])
def test_shares_that_cannot_be(prior, words):
    with pytest.raises(ValueError, match=words): head(dict(prior=prior))

def test_what_is_there_is_not_computed_again():
    cfg = CAPConfig(**FAST)
    ev = Evidence.fit(V, T, U, cfg.dim)
    u = ev.vision(V, U)
    n = neighbours(u, cfg.n_neighbours)
    q = first_labels(V, u, ev, cfg, n, torch.full((240,), -1), torch.ones(6, dtype=torch.bool))
    assert same(head(), head(first=q, nbrs=n, space=ev.space))
    other = head(first=F.one_hot((y+1)%6, 6).float())
    assert torch.equal(other.first.argmax(1), (y+1)%6) and not same(head(), other) # it is really used
    with pytest.raises(ValueError, match='first as soft labels'): head(first=q[:9])

def test_given_first_labels_yield_to_true_ones():
    i = (y<2).nonzero()[:,0]
    fit = head(first=torch.full((240, 6), 1/6), labeled=(i, y[i]), seen=[0,1])
    assert torch.equal(fit.first[i].argmax(1), y[i]) and not fit.first[y>=2][:,:2].any()
    torch.testing.assert_close(fit.first.sum(1), torch.ones(240))

def test_regulariser():
    seen = []
    def pull(logits, yb, tuned, frozen):
        seen.append((logits.shape[1], len(logits)==len(yb), tuned.requires_grad, float((tuned-frozen).detach().abs().max()), float((tuned.detach().norm(dim=1)-1).abs().max())))
        return 3*(tuned-frozen).square().sum()
    fit = head(regulariser=pull)
    assert all(c==6 and fits and grad and unit<1e-5 for c,fits,grad,_,unit in seen) and seen[0][3]<1e-6<seen[-1][3]
    assert fit.head.delta.norm()<.9*head().head.delta.norm()
    assert same(head(), head(regulariser=lambda l,*_: 0*l.sum()))

def test_regulariser_of_a_learner():
    i,sizes = torch.cat([(y==c).nonzero()[:2,0] for c in range(6)]),[]
    def count(z, yb, T, T0): sizes.append((len(z), len(yb))); return 0*T.sum()
    rounds(FPL(5), HeadLearner(V, T, U, CAPConfig(**FAST), count), labeled=(i, y[i]), steps=4)
    assert sizes==[(30+12,)*2]*4 # one call a step
    l = HeadLearner(V, T, U, CAPConfig(**FAST), CalibratedLoss(momentum=.5))
    a,b = (rounds(FPL(5), l, steps=6) for _ in range(2))
    assert torch.equal(a.last, b.last) and not torch.equal(a.last, rounds(FPL(5), steps=6).last) # what it remembers is of one run
    with pytest.raises(RuntimeError, match="batch_size=64 at dial='features'"): rounds(FPL(5), HeadLearner(V, T, U, CAPConfig(**FAST), lambda *_: torch.empty(2**55).sum()))

def test_a_learner_may_refuse_a_strategy():
    class Picky(HeadLearner):
        def check(self, strategy):
            if strategy.members>1: raise ValueError('one model only')
        def learn(self, *a, **kw): trained.append(1); return super().learn(*a, **kw)
    trained,l = [],Picky(V, T, U, CAPConfig(**FAST))
    with pytest.raises(ValueError, match='one model only'): rounds(UPL(5), l, steps=9)
    assert not trained
    rounds(FPL(5), l, steps=9)
    assert trained

def test_shared_adapters():
    one,two = head(dict(shared_adapters=True)), head()
    assert one.head.main is one.head.pseudo and two.head.main is not two.head.pseudo
    assert not torch.equal(one.head(V, U), two.head(V, U))

# learner and rounds
def learner(**kw): return HeadLearner(V, T, U, CAPConfig(**{**FAST, **kw}))
def rounds(s, l=None, **kw):
    l = l or learner()
    return fit_strategy(s, l, l.zero_shot(), progress=False, **kw)
def acc(q): return float((q.argmax(1)==y).float().mean())

def test_before_learning_only_texts_speak():
    l = learner()
    assert isinstance(l, Learner) and torch.equal(l.logits().argmax(1), l.zero_shot().argmax(1))

def test_reset_forgets_and_models_are_copies():
    l = learner()
    start,sel,none = l.logits(),FPL(8).select(l.zero_shot()),(torch.tensor([]).long(),)*2
    def once():
        l.reset(3)
        return l.learn(sel, none, 10, 3), l.model()
    (a,m),(b,k) = once(), once()
    assert a==b and torch.equal(m(V, U), k(V, U))
    kept = m(V, U)
    l.learn(sel, none, 5, 4)
    assert torch.equal(m(V, U), kept) and not torch.equal(l.logits(), kept)
    l.reset(3)
    assert torch.equal(l.logits(), start)

@pytest.mark.parametrize('name', NAMES)
def test_strategies_train_within_the_budget(name):
    l = learner(epochs=6)
    s, seen = strategy(name), []
    torch.manual_seed(5); a = torch.rand(2)
    torch.manual_seed(5); fit = rounds(s, l, callback=seen.append)
    assert torch.equal(a, torch.rand(2)) # the caller's random numbers stay
    h = fit.history
    assert h.steps.sum()==l.budget(240)==6*math.ceil(240/64) and len(h)==s.rounds*s.members==len(seen)
    assert h.steps.max()-h.steps.min()<=1 and h['round'].max()==s.rounds
    assert torch.equal(fit.first, l.zero_shot()) and fit.last.shape==(240, 6)
    torch.testing.assert_close(fit.head(V, U).softmax(1), fit.last, atol=1e-4, rtol=1e-3)
    assert torch.equal(fit.logits, fit.last.log()) and acc(fit.last)>acc(fit.first)

def test_a_seed_is_a_result():
    a,b,c = (rounds(CPL(2), seed=s) for s in (0,0,1))
    assert torch.equal(a.last, b.last) and not torch.equal(a.last, c.last)

def test_upl_averages_different_learners():
    fit = rounds(UPL(8, members=3))
    assert isinstance(fit.head, Ensemble) and len(fit.head.heads)==3
    each = torch.stack([h(V, U).softmax(1) for h in fit.head.heads])
    torch.testing.assert_close(each.mean(0), fit.head(V, U).exp(), atol=1e-5, rtol=1e-4)
    assert not torch.equal(each[0], each[1])

def test_later_rounds_use_the_trained_model():
    fit,l = rounds(IFPL(8, 3)), learner()
    assert not torch.equal(fit.selected.indices, FPL(8).select(l.zero_shot()).indices)

@pytest.mark.parametrize('name', ['fpl','grip','cpl'])
def test_labels_and_unseen_classes(name):
    i = (y<2).nonzero()[:,0]
    fit = rounds(strategy(name), labeled=(i, y[i]), seen=[0,1])
    assert (fit.selected.labels>=2).all() and not torch.isin(fit.selected.indices, i).any()
    assert float((fit.head(V, U)[i].argmax(1)==y[i]).float().mean())>.9 # seen classes are learned from their labels
    few = torch.cat([(y==c).nonzero()[:2,0] for c in range(6)])
    ssl = rounds(strategy(name), labeled=(few, y[few]))
    assert not torch.isin(ssl.selected.indices, few).any() and acc(ssl.last)>acc(ssl.first)

def test_candidates_are_trained_with_their_loss():
    l,none = learner(adapters=False),(torch.tensor([]).long(),)*2
    sel = CPL(1, 1., 0.).select(l.zero_shot(), 1)
    l.reset(0)
    assert l.learn(sel, none, 1, 0)>0 and sel.candidates.gt(0).sum(1).max()>1
    l.reset(0); l._place(sel, none)
    j = torch.randint(len(sel), (64,), generator=rand(0))
    i = sel.indices[j]
    want = float(partial_loss(l.logits()[i], sel.candidates[j]))
    l.reset(0)
    assert l.learn(sel, none, 1, 0)==pytest.approx(want, rel=1e-4)

class Bare:
    "The least that a learner has"
    def __init__(self): self.inner = learner()
    def reset(self, seed): self.inner.reset(seed)
    def learn(self, sel, labeled, steps, seed, callback=None): return self.inner.learn(sel, labeled, steps, seed)
    def logits(self): return self.inner.logits()

def test_a_learner_may_have_three_methods_only():
    b = Bare()
    with pytest.raises(ValueError, match='give the number of steps'): rounds(FPL(), l=type('L', (Bare,), {'zero_shot': lambda self: self.inner.zero_shot()})())
    fit = fit_strategy(FPL(), b, b.inner.zero_shot(), steps=7, progress=False)
    assert fit.head is b and fit.history.steps.tolist()==[7]
