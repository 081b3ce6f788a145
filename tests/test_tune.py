"The trainer of prompts: its losses by hand, runs that are killed and go on, two processes that share a batch."
import csv, json, math, os, signal, socket, subprocess, sys, types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
if __name__=='__main__': sys.path.insert(0, str(Path(__file__).parent.parent)) # a process of `test_two_processes`
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from pla_nb import tune
from pla_nb.backbones import OpenClip, pick_device
from pla_nb.calibrate import CalibratedLoss, moment_loss
from pla_nb.data import fashion_mnist
from pla_nb.features import features
from pla_nb.pixels import pixels
from pla_nb.prompts import Prompted, prompts_for
from pla_nb.pseudolabels import UPL, PseudoLabels, growth, sinkhorn, strategy
from pla_nb.train import CAPConfig, Learner, fit_strategy
from pla_nb.tune import *

torch.set_num_threads(1)
prop = settings(deadline=None, max_examples=40)
ROOT = Path(__file__).parent.parent
BASE = dict(epochs=3, steps=5, batch_size=8, k=3, tau=.2, lr=.05, update_every=1, precision='fp32', dim=16, hidden=8, n_ctx=2, prior='uniform') # shares estimated of 60 images are noise
dials = pytest.mark.parametrize('dial', ['text','maple'])

@cache
def parts():
    "A ViT with random weights, and 60 images"
    vlm = OpenClip('ViT-S-32', False, device='cpu', precision='fp32', embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=16),
                   text_cfg=dict(context_length=32, vocab_size=49408, width=32, heads=2, layers=2))
    task = fashion_mnist('test').subset(range(60))
    return vlm,features(vlm, task, cache=False, progress=False),pixels(task, vlm.preprocess, cache=False, progress=False)

def config(dial='text', **kw): return CAPConfig(**{**BASE, **(dict(depth=2) if dial=='maple' else {}), 'dial': dial, **kw})
def fit(cfg, **kw):
    vlm,f,pool = parts()
    return fit_prompts(vlm, kw.pop('f', f), cfg, pool=pool if cfg.dial=='maple' else None, progress=False, **kw)
def start(cfg, labeled=None, seen=(), group=None, **kw):
    "A run at step 0"
    vlm,f,pool = parts()
    a = dict(sentences=None, T0=None, first=None, ranking=None, views=(), regulariser=None)|kw
    return tune._start(vlm, f, cfg.resolved(vlm.logit_scale), a['sentences'], a['T0'], a['first'], labeled, seen, a['ranking'], pool if cfg.dial=='maple' else None, a['views'], a['regulariser'], group or OneProcess())
def epoch(run):
    for _ in range(run.cfg.steps): run.advance()
def targets(): return torch.tensor(parts()[1].task.targets)
def some(n=6): return (list(range(n)), targets()[:n].tolist())
def weights(r): return dict(r.prompts.state_dict())|{'T': r.T}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a) and a.keys()==b.keys()
def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=0)
def images(n, seed=0): return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
def stir(model):
    "Adapters that do something"
    torch.manual_seed(3)
    for a in (model.text, model.main, model.pseudo): torch.nn.init.normal_(a.up.weight)
    return model

# schedules

def test_rate():
    r = [learning_rate(s, 2500, .01, 50) for s in range(2500)]
    assert sum(r)==pytest.approx(12.5, abs=.02) # spec 5.3
    assert r[0]==pytest.approx(.01/50) and r[49]==r[50]==max(r)==.01 and r[1275]==pytest.approx(.005) and r[-1]<1e-7
    assert all(a<b for a,b in zip(r[:50], r[1:50])) and all(a>b for a,b in zip(r[50:], r[51:]))
    assert learning_rate(1, 10, 1., 50)==1. # a short run is not all warm-up

def test_growth_tables(): # spec 5.2
    table = dict(resisc45=(16,140,.8,[16,29,43,57,70,84,98,112,112,112]), dtd=(16,80,.8,[16,22,29,36,43,50,57,64,64,64]), flowers=(6,20,.8,[6,7,8,10,11,13,14,16,16,16]))
    for k0,n,rho,want in table.values(): assert [growth(k0, n, rho, 50)(e) for e in range(0, 50, 5)]==want
    k = growth(3, 6, .8, 3)
    assert fit(config()).history.k.tolist()==[k(e) for e in range(3)]
    assert fit(config(grow=False)).history.k.tolist()==[3]*3

@prop
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(0, 99))
def test_batches_run_through_permutations(n, size, turn, seed):
    per = n//min(n, size)
    rows = torch.cat([draw_batch(n, size, s, seed, 'a') for s in range(turn*per, turn*per+per)])
    assert len(rows.unique())==len(rows)==per*min(n, size) and 0<=rows.min() and rows.max()<n
    assert torch.equal(draw_batch(n, size, turn*per, seed, 'a'), rows[:min(n, size)])

def test_streams_differ():
    assert len({tuple(draw_batch(50, 50, s, seed, name).tolist()) for s in (0,1) for seed in (0,1) for name in 'ab'})==8

# losses

@dials
@pytest.mark.parametrize('margin', [0., 3.])
def test_losses_by_hand(dial, margin):
    "One pass for all images, against one for each part and the formulas of the spec"
    vlm,f,_ = parts()
    model = stir(start(config(dial, residual=.5)).model)
    x = lambda n, seed: images(n, seed) if dial=='maple' else f.V[seed*7:seed*7+n]
    M = margin*torch.rand(10, 10).fill_diagonal_(0)
    b = StepBatch(x(4, 1), torch.tensor([0,1,2,3]), torch.tensor([1.,0.,.5,1.]), None, x(3, 2), torch.tensor([9,8,7]), x(7, 3), x(7, 4))
    with torch.no_grad():
        psi = model.text(model.prompts.texts())
        z = lambda o, adapter: vlm.logit_scale*adapter(model.images(o))@psi.T
        q = z(b.weak, model.main).softmax(1)
        tau = float(q.amax(1).median())
        sure = q.amax(1)>tau
        shifted = lambda l, y: l+M[y]
        y = q.argmax(1)
        want = dict(labeled=F.cross_entropy(shifted(z(b.labeled, model.main), b.y), b.y), pseudo=(F.cross_entropy(shifted(z(b.pseudo, model.main), b.yhat), b.yhat, reduction='none')*b.weights).sum()/2.5,
                    unlabeled=F.cross_entropy(shifted(z(b.strong[sure], model.pseudo), y[sure]), y[sure]))
    got = step_losses(model, b, M, tau)
    assert 0<int(sure.sum())<7 and torch.equal(got.yhat, y)
    for k,v in want.items(): close(getattr(got, k).detach(), v, 2e-4)
    close(got.total.detach(), sum(want.values()), 5e-4)
    weighed = step_losses(model, b, M, tau, weights=(1.8,.6))
    close(weighed.total.detach(), 1.8*want['labeled']+.6*(want['pseudo']+want['unlabeled']), 5e-4)
    for k in want: close(getattr(weighed, k).detach(), want[k], 2e-4) # what is reported stays as it is
    nobody = step_losses(model, b, M, 2.)
    nobody.unlabeled.backward()
    assert nobody.unlabeled==0 and all(p.grad is None or not p.grad.any() for p in model.parameters())

def test_paths_of_the_adapters():
    "Each loss trains its own adapter; weak views train nothing"
    model = stir(start(config()).model)
    V = parts()[1].V
    grads = lambda b: {k for k in ('text','main','pseudo') if getattr(model, k).up.weight.grad is not None and getattr(model, k).up.weight.grad.any()}
    for b,want in ((StepBatch(V[:3], torch.tensor([0,1,2])), {'text','main'}), (StepBatch(weak=V[:3], strong=V[3:6]), {'text','pseudo'})):
        model.zero_grad(); step_losses(model, b, tau=-1.).total.backward()
        assert grads(b)==want
    assert start(config(shared_adapters=True)).model.pseudo is not model.main
    one = start(config(shared_adapters=True)).model
    assert one.pseudo is one.main and sum(p.numel() for p in one.trained().values())<sum(p.numel() for p in model.trained().values())

def test_candidates():
    model,V = start(config()).model,parts()[1].V
    y,one = torch.tensor([2,5,5]),torch.eye(10)[[2,5,5]]
    close(step_losses(model, StepBatch(V[:3], y, candidates=one)).pseudo, step_losses(model, StepBatch(V[:3], y)).pseudo)
    two = one+torch.eye(10)[[3,3,4]]
    assert step_losses(model, StepBatch(V[:3], y, candidates=two)).pseudo<step_losses(model, StepBatch(V[:3], y)).pseudo

def test_regulariser_sees_tuned_and_frozen_texts():
    calls = []
    def reg(z, y, T, T0):
        calls.append((len(z), len(y), T.requires_grad, T0.requires_grad, torch.equal(T0, prompts_for(parts()[0], parts()[1].task.classes, 'text', 2).frozen_texts())))
        return ((T-T0)**2).sum()
    pulled,free = fit(config(lr=.5), regulariser=reg, labeled=some()),fit(config(lr=.5), labeled=some())
    assert set(calls)=={(14, 14, True, False, True)} and len(calls)==15 # one call a step, with 8 pseudolabeled and 6 labeled images
    assert pulled.history.regulariser.iloc[1:].gt(0).all() and free.history.regulariser.eq(0).all()
    assert not equal(weights(pulled), weights(free))

def test_a_term_on_the_texts_counts_once():
    vlm,f,_ = parts()
    model,y = start(config()).model,torch.arange(4)
    T0 = F.normalize(torch.randn(10, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    L = step_losses(model, StepBatch(f.V[:4], y, labeled=f.V[4:8], y=y), regulariser=CalibratedLoss.moments_only(lam_mom=1.), T0=T0)
    close(L.extra.detach(), moment_loss(model.texts()[0], T0).detach())

def test_what_a_regulariser_remembers_is_of_one_run():
    reg = CalibratedLoss(momentum=.5)
    a = fit(config(), regulariser=reg)
    assert reg.running.value is not None and equal(weights(a), weights(fit(config(), regulariser=reg))) and not equal(weights(a), weights(fit(config())))
    vlm,f,_ = parts()
    learner,none = PromptLearner(vlm, f, config(), regulariser=reg),(torch.zeros(0, dtype=torch.long),)*2
    sel,ends = PseudoLabels(torch.arange(6), targets()[:6], torch.ones(6), 10),[]
    for _ in range(2):
        learner.reset(0); learner.learn(sel, none, 3, 0)
        ends.append(learner.logits())
    assert torch.equal(*ends)

# views

def test_views_of_pixels_for_several_processes():
    "Each process gets its rows of what one process would see"
    vlm,_,pool = parts()
    class Third(OneProcess):
        def part(self, n): return slice(2, n, 3)
    views,rows = PixelViews(pool, vlm.preprocess, vlm.device),torch.arange(50, 30, -1)
    assert torch.equal(views.strong(rows, seeded(0), Third()), views.strong(rows, seeded(0))[2::3])

def test_views_of_features():
    V = parts()[1].V
    rows,g = torch.arange(0, 60, 3),lambda: seeded(0)
    v = FeatureViews(V, cfg=CAPConfig())
    assert torch.equal(v.weak(rows), V[rows]) and torch.equal(v.strong(rows, g()), v.strong(rows, g()))
    close(v.strong(rows, g()).norm(dim=1), torch.ones(20))
    assert ((v.strong(rows, g())*V[rows]).sum(1)>.5).all() and not torch.equal(v.strong(rows, g()), V[rows])
    still = FeatureViews(V, cfg=CAPConfig(mix=0., dropout=0., noise=0.))
    close(still.strong(rows, g()), V[rows])
    seen = FeatureViews(V, [V+1, V+2]).strong(rows, g())-V[rows]
    assert {round(float(o), 3) for o in seen.mean(1)}=={1., 2.} and seen.std(1).max()<1e-5

# balance and lists

@prop
@given(st.integers(2, 6), st.integers(10, 60), st.integers(0, 999), st.booleans())
def test_shift_gives_shares(c, n, seed, absent):
    g = torch.Generator().manual_seed(seed)
    l,prior = 4*torch.randn(n, c, generator=g),torch.rand(c, generator=g)+.2
    if absent: prior[0] = 0
    q = (l+class_shift(l, prior)).softmax(1)
    close(q.mean(0), prior/prior.sum(), 2e-3)
    close(q, sinkhorn(l, prior, 500), 1e-2)

def test_shift_with_what_is_known():
    l = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    l[:,1] = -math.inf
    s = class_shift(l, torch.tensor([1.,0.,1.]))
    assert s[1]==-math.inf and not (l+s).softmax(1).isnan().any()
    close((l+s).softmax(1).mean(0), torch.tensor([.5,0.,.5]), 2e-3)

@st.composite
def lists(draw):
    "Old lists, and what is predicted now"
    n,c = draw(st.integers(4, 20)),draw(st.integers(2, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    P = torch.rand(n, c, generator=g).softmax(1)
    i = torch.randperm(n, generator=g)[:draw(st.integers(0, n//2))]
    y = torch.randint(c, (len(i),), generator=g).sort().values
    return PseudoLabels(i, y, torch.ones(len(i)), c),P,torch.rand(n, generator=g)>.4,draw(st.integers(1, 4))

@prop
@given(lists())
def test_updates_against_plain_lists(case):
    old,P,may,k = case
    conf,y = P.max(1)
    new = push_in(old, y, conf, may, k)
    for c in range(P.shape[1]):
        fresh = sorted((n for n in range(len(P)) if may[n] and y[n]==c and n not in old.indices), key=lambda n: -conf[n])
        assert new.by_class(c).tolist()==(fresh+old.by_class(c).tolist())[:k]
        both = sorted(fresh+old.by_class(c).tolist(), key=lambda n: -P[n,c])
        assert merge_in(old, P, may, k).by_class(c).tolist()==both[:k]

@pytest.mark.parametrize('update', ['released','merge'])
def test_updates_in_a_run(update):
    run = start(config(update=update, balance=False, start='zero-shot', tau=.15, epochs=6))
    old = run.sel
    epoch(run)
    said,conf = run.yhat.clone(),run.conf.clone()
    looked = {int(i) for s in range(5) for i in draw_batch(60, 8, s, 0, 'pool', 0)}
    assert {int(i) for i in conf.nonzero()[:,0]}==looked
    run.end_epoch()
    if update=='released': want = push_in(old, said, conf, conf>.15, run.k(0))
    else:
        q = run.pool_logits()[0].softmax(1)
        want = merge_in(old, q, q.amax(1)>.15, run.k(0))
    assert torch.equal(run.sel.indices, want.indices) and torch.equal(run.sel.labels, want.labels) and run.since==5
    if update=='released': assert not torch.equal(run.sel.indices, old.indices)

def test_lists_change_when_they_should():
    r = start(config(update_every=2, epochs=5))
    since = []
    for _ in range(5): epoch(r); r.end_epoch(); since.append(r.since)
    assert since==[5,5,15,15,15] # after epochs 0 and 2; after the last one nothing would use them

def test_balanced_lists_are_full():
    r = fit(config(epochs=4))
    assert r.selected.counts.tolist()==[r.history.k.iloc[-2]]*10 and (r.history.most-r.history.fewest).max()<12

def test_lists_of_the_whole_pool():
    run = start(config(k=None), labeled=some(10))
    assert run.cfg.k==5 and len(run.sel)==50 and not torch.isin(run.sel.indices, torch.arange(10)).any()

@pytest.mark.slow
def test_compiled_towers():
    torch.manual_seed(0)
    a,b = [fit(config('maple', compile=o, epochs=1)) for o in (True,False)]
    for k,v in weights(b).items(): close(weights(a)[k], v, 1e-4)

def test_prior():
    share = np.array([.28]+[.08]*9)
    r = fit(config(epochs=4, k=5, prior=share.tolist()))
    close(r.prior.double(), torch.tensor(share), 1e-4)
    assert r.selected.counts[0]>2*r.selected.counts[1:].max()
    close(r.last.mean(0).double(), torch.tensor(share), 5e-3)

def test_first_labels_stay_in_later_ones():
    for kw,keep in ((dict(), 2.), (dict(keep=.25), .25), (dict(keep=0.), 0.)):
        run = start(config(balance=False, **kw))
        q = run.soft(run.pool_logits()[0].detach())
        close(q, (run.pool_logits()[0].detach()+keep*run.pool.soft.clamp(min=1e-4).log()).softmax(1), 1e-4)
    assert start(config(start='zero-shot')).pool.keep==0 # as in the paper

def test_a_run_without_epochs_has_an_empty_history():
    none,one = fit(config(epochs=0)),fit(config(epochs=1))
    assert not len(none.history) and none.history.columns.tolist()==one.history.columns.tolist()

def test_views_made_ahead():
    "Batches made while the device works on the one before are the same batches"
    runs = [start(config('maple', steps=7)) for _ in range(2)]
    runs[0].maker = ThreadPoolExecutor(1)
    for r in runs:
        for _ in range(2): epoch(r); r.end_epoch()
    assert runs[0].ahead is None and all(torch.equal(a, b) for a,b in zip(*(r.params for r in runs)))
    runs[0].maker.shutdown()

def test_excluded_images():
    run = start(config(exclude_selected=True))
    for _ in range(3):
        assert not torch.isin(run.batch(run.step)[1], run.sel.indices).any()
        epoch(run); run.end_epoch()
    assert torch.isin(torch.cat([start(config(steps=20)).batch(0)[1]]), torch.arange(60)).all()

# margin

@pytest.mark.parametrize('count', ['pool','epoch'])
def test_margin_by_hand(count):
    from pla_nb.margin import margin_matrix, similarity_fusion
    run = start(config(count=count, start='zero-shot', balance=False, tau=.12, margin=5.))
    stir(run.model)
    assert not run.M.any()
    drawn = []
    for _ in range(5):
        rows = run.batch(run.step)[1]
        with torch.no_grad():
            q = (run.model.logits(run.pool.feats[rows], run.model.texts()[1], run.model.main)+run.pool.known(rows)).softmax(1)
        drawn += q.argmax(1)[q.amax(1)>.12].tolist()
        run.advance()
    run.end_epoch()
    with torch.no_grad():
        T,psi = run.model.texts()
        q = run.model.logits(run.pool.feats, psi, run.model.main).softmax(1)
        sure = q.argmax(1)[q.amax(1)>.12].tolist() if count=='pool' else drawn
        n = torch.tensor([sure.count(c) for c in range(10)]).float()
        W = torch.stack([run.model.main(run.pool.feats[run.sel.by_class(c)]).mean(0) for c in range(10)])
        delta = 1-n/n.max()
        want = 5*delta.max()*(delta/(2-delta))[:,None]*torch.maximum(T@T.T, F.normalize(W, dim=1)@F.normalize(W, dim=1).T).clamp(0, 1)
    close(run.M, want.fill_diagonal_(0), 1e-4)
    assert delta.max()>0 and run.M.max()>0

def test_first_epoch_has_no_margin(): assert fit(config()).history.margin.tolist()[0]==0 and not fit(config(margin=0.)).M.any()

# labels

@dials
def test_no_label_is_read(dial):
    f = parts()[1]
    other = replace(f, task=replace(f.task, targets=np.random.default_rng(0).integers(0, 10, 60)))
    none = replace(f, task=replace(f.task, targets=None))
    a,b,c = [fit(config(dial), f=o) for o in (f, other, none)]
    assert equal(weights(a), weights(b)) and equal(weights(a), weights(c)) and 'accuracy' not in a.history
    watched = fit(config(dial), watch=targets())
    assert equal(weights(a), weights(watched)) and watched.history.accuracy.iloc[-1]==pytest.approx(float((watched.last.argmax(1)==targets()).float().mean()), abs=.2)

@dials
def test_unseen_classes(dial):
    "TRZSL: unlabeled images are of unseen classes, seen ones have no margin"
    y,seen = targets(),[0,1,2,3,4,5]
    i = torch.isin(y, torch.tensor(seen)).nonzero()[:,0]
    r = fit(config(dial, k=2), labeled=(i, y[i]), seen=seen)
    free = torch.ones(60, dtype=torch.bool); free[i] = False
    assert set(r.last[free].argmax(1).tolist())<={6,7,8,9} and torch.equal(r.last[i].argmax(1), y[i])
    assert set(r.selected.labels.tolist())=={6,7,8,9} and free[r.selected.indices].all()
    assert not r.M[:6].any() and r.history.labeled.gt(0).all()

def test_restriction():
    y,seen = targets(),[0,1,2,3,4,5]
    i = torch.isin(y, torch.tensor(seen)).nonzero()[:,0]
    for restrict in (True,False):
        run = start(config(restrict=restrict, start='zero-shot', balance=False, tau=-1.), (i, y[i]), seen)
        epoch(run)
        said = set(run.yhat[run.conf>0].tolist())
        assert (said<={6,7,8,9})==restrict

def test_given_lists_are_used():
    first = PseudoLabels(torch.tensor([5,9,30]), torch.tensor([0,4,9]), torch.ones(3), 10)
    run = start(config(), first=first)
    assert torch.equal(run.sel.indices, first.indices)
    b = run.batch(run.step)[0]
    assert {tuple(o.tolist()) for o in b.pseudo}=={tuple(o.tolist()) for o in parts()[1].V[first.indices]}
    ranking = {3: torch.arange(60).float()}
    assert start(config(start='zero-shot'), ranking=ranking).sel.by_class(3).tolist()==[59,58,57]

# what a run leaves alone

@dials
def test_frozen_weights_and_random_numbers(dial):
    vlm,f,_ = parts()
    before = {k: v.clone() for k,v in vlm.model.state_dict().items()}
    state,V = torch.get_rng_state(),f.V.clone()
    vlm.precision = 'bf16' # of the features: the run has its own
    try: r = fit(config(dial))
    finally: precision,vlm.precision = vlm.precision,'fp32'
    assert precision=='bf16' and torch.equal(torch.get_rng_state(), state) and torch.equal(f.V, V)
    assert all(torch.equal(v, before[k]) for k,v in vlm.model.state_dict().items()) and not any(p.requires_grad for p in vlm.model.parameters())
    assert not torch.equal(r.prompts.ctx, prompts_for(vlm, f.task.classes, dial, 2, 2).ctx)
    assert equal(weights(r), weights(fit(config(dial)))) and not equal(weights(r), weights(fit(config(dial, seed=1))))

@dials
def test_prediction_has_no_adapter(dial):
    vlm,f,pool = parts()
    r = fit(config(dial, residual=1., balance=False, start='zero-shot'))
    close(r.T, r.prompts.texts().detach())
    V = Prompted(vlm, r.prompts).encode_images(vlm.preprocess.normalize(pool.squares(range(60))))
    close(r.last, (vlm.logit_scale*V@r.T.T).softmax(1), 1e-4)
    close(r.head(V), vlm.logit_scale*V@r.T.T, 1e-4)
    run = start(config(dial))
    T = PromptHead(run.model.prompts).T
    assert torch.equal(PromptHead(stir(run.model).prompts).T, T)

@dials
def test_what_the_prompts_themselves_say(dial):
    "Neither adapters nor balance, first labels, true ones or classes that cannot be"
    vlm,_,pool = parts()
    y = targets()
    i = (y<6).nonzero()[:,0]
    r = fit(config(dial, k=2, residual=1.), labeled=(i, y[i]), seen=range(6))
    V = Prompted(vlm, r.prompts).encode_images(vlm.preprocess.normalize(pool.squares(range(60))))
    close(r.logits, vlm.logit_scale*V@r.T.T, 1e-4)
    assert not r.logits.requires_grad and (r.logits.argmax(1)!=r.last.argmax(1)).any()

def test_learning_learns():
    "With the true classes as pseudolabels, the prompts fit them"
    y = targets()
    first = PseudoLabels(*(o[y.argsort()] for o in (torch.arange(60), y)), torch.ones(60), 10)
    r = fit(config(grow=False, margin=0., adapters=False, tau=2., epochs=12, lr=3., update_every=99, batch_size=60), first=first)
    assert r.history.pseudo.iloc[-1]<r.history.pseudo.iloc[0]-.08

# stop and go on

def end(folder):
    with safe_open(Path(folder)/'prompts.safetensors', 'pt') as f: return {k: f.get_tensor(k) for k in f.keys()},json.loads(f.metadata()['run'])

def test_killed_and_resumed(tmp_path):
    "Processes that get SIGKILL at random places end as if they had not"
    out = tmp_path/'resume.csv'
    p = subprocess.run([sys.executable, ROOT/'benchmarks'/'resume.py', '--kills', '4', '--seed', '1', '--out', out], capture_output=True, text=True)
    rows = list(csv.DictReader(out.open()))
    assert p.returncode==0 and len(rows)==4==len({r['place'] for r in rows}) and {r['dial'] for r in rows}=={'text','maple'}, p.stdout+p.stderr
    assert all(r[k]=='True' for r in rows for k in ('killed','finished','equal')) and any(int(r['resumed_at']) for r in rows)

@dials
def test_ctrl_c(dial, tmp_path):
    calls = []
    def reg(z, y, T, T0):
        calls.append(1)
        if len(calls)==15+8: signal.raise_signal(signal.SIGINT)
        return 0*T.sum()
    whole,before = fit(config(dial), regulariser=reg),signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='stopped after step 8 of 15'): fit(config(dial), regulariser=reg, checkpoint=tmp_path)
    assert end(tmp_path)[1]['step']==8 and signal.getsignal(signal.SIGINT)==before
    rows = []
    r = fit(config(dial), regulariser=reg, checkpoint=tmp_path, callback=rows.append)
    assert equal(weights(r), weights(whole)) and r.history.equals(whole.history) and [o['epoch'] for o in rows]==[1,2]
    n = len(calls)
    again = fit(config(dial), regulariser=reg, checkpoint=tmp_path) # nothing is left to do
    assert len(calls)==n and equal(weights(again), weights(whole)) and torch.equal(again.last, whole.last)

class Stops(CalibratedLoss):
    "Asks for a stop in its n-th call"
    n = 0
    def __call__(self, *a):
        self.n -= 1
        if not self.n: signal.raise_signal(signal.SIGINT)
        return super().__call__(*a)

@dials
def test_resumed_with_a_regulariser_that_remembers(dial, tmp_path):
    again = lambda n=0, **kw: vars(r := Stops(**dict(momentum=.9)|kw)).update(n=n) or r
    whole = fit(config(dial), regulariser=again(), checkpoint=tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt, match='step 8 of 15'): fit(config(dial), regulariser=again(8), checkpoint=tmp_path/'parts')
    assert end(tmp_path/'parts')[0]['regulariser.running_mean'].isfinite()
    for other,name in ((again(momentum=.5), r'Stops\(.*momentum=0.5\)'), (CalibratedLoss(momentum=.9), 'CalibratedLoss'), (None, 'None'), (lambda *_: 0., 'test_tune.*lambda')):
        with pytest.raises(ValueError, match=fr'another run: regulariser was Stops\(.*momentum=0.9\), now {name}.*resume=False'): fit(config(dial), regulariser=other, checkpoint=tmp_path/'parts')
    r = fit(config(dial), regulariser=again(), checkpoint=tmp_path/'parts')
    assert equal(weights(r), weights(whole)) and r.history.equals(whole.history) and equal(end(tmp_path/'parts')[0], end(tmp_path/'whole')[0])

def test_callback_that_stops(tmp_path):
    def stop(row):
        if row['epoch']==1: raise RuntimeError('enough')
    with pytest.raises(RuntimeError, match='enough'): fit(config(), checkpoint=tmp_path, callback=stop)
    assert end(tmp_path)[1]['step']==10 and equal(weights(fit(config(), checkpoint=tmp_path)), weights(fit(config())))

def test_another_run_is_refused(tmp_path):
    fit(config(), checkpoint=tmp_path)
    vlm,f,_ = parts()
    for kw,words in ((dict(cfg=config(lr=.1)), 'lr was 0.05, now 0.1'), (dict(cfg=config(), f=replace(f, V=f.V.flip(0))), 'images was'), (dict(cfg=config(), labeled=some()), 'labels was'), (dict(cfg=config(), sentences={'bag': 'A bag.'}), 'sentences was')):
        with pytest.raises(ValueError, match=f'another run: .*{words}.*resume=False'): fit(**kw, checkpoint=tmp_path)
    r = fit(config(lr=.1), checkpoint=tmp_path, resume=False)
    assert equal(weights(r), weights(fit(config(lr=.1), checkpoint=tmp_path)))
    path = tmp_path/'prompts.safetensors'
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='damaged.*delete it'): fit(config(lr=.1), checkpoint=tmp_path)

# what goes wrong

def test_out_of_memory():
    def reg(z, y, T, T0): return torch.empty(2**55).sum()
    with pytest.raises(RuntimeError, match="batch_size=8 at dial='maple'.*batch_size=4.*dial='text'"): fit(config('maple'), regulariser=reg)
    def other(z, y, T, T0): raise RuntimeError('shapes do not fit')
    with pytest.raises(RuntimeError, match='^shapes do not fit'): fit(config(), regulariser=other)

def test_not_finite(tmp_path):
    calls = []
    def reg(z, y, T, T0):
        calls.append(1)
        return T.sum()*(math.nan if len(calls)==8 else 0.)
    with pytest.raises(FloatingPointError, match=r'regulariser and gradient not finite in step 7 of 15.*lr=0.05, batch_size=8'): fit(config(), regulariser=reg, checkpoint=tmp_path, every=6)
    assert end(tmp_path)[1]['step']==6 # the last whole state is kept

def test_errors_say_what_to_do():
    vlm,f,pool = parts()
    for kw,words in ((dict(cfg=CAPConfig()), 'fit_head'), (dict(cfg=config('maple')), 'pool=pixels'), (dict(cfg=config(), views=[f.subset(range(5))]), '60 images.*got 5'),
                     (dict(cfg=config(), first=PseudoLabels(torch.tensor([0]), torch.tensor([0]), torch.ones(1), 3)), '10 classes, got 3')):
        with pytest.raises(ValueError, match=words): fit_prompts(vlm, f, progress=False, **kw)
    with pytest.raises(ValueError, match='5 images.*got 60'): fit_prompts(vlm, f.subset(range(5)), config('maple'), pool=pool, progress=False)

# strategies

@pytest.mark.parametrize('name', ['fpl','upl','grip','cpl'])
def test_baselines_learn(name):
    vlm,f,_ = parts()
    learner = PromptLearner(vlm, f, config())
    assert isinstance(learner, Learner) and not any(k.startswith(('main','text')) for k in learner.tuned.trained())
    r = fit_strategy(strategy(name), learner, learner.zero_shot(), steps=20, progress=False)
    assert torch.allclose(r.first, (vlm.logit_scale*f.V@learner.T0.T).softmax(1)) and r.history.loss.notna().all() and r.history.steps.sum()==20
    close(r.last.sum(1), torch.ones(60), 1e-4)
    if name!='upl': close(r.head(f.V).softmax(1), r.last, 1e-4)

def test_learner_on_pixels():
    vlm,f,pool = parts()
    learner = PromptLearner(vlm, f, config('maple'), pool=pool)
    y = targets()
    sel = PseudoLabels(torch.arange(6), y[:6], torch.ones(6), 10)
    l0 = learner.logits()
    none = (torch.zeros(0, dtype=torch.long),)*2
    rows = []
    loss = learner.learn(sel, none, 4, 0, rows.append)
    l1 = learner.logits()
    learner.reset(0)
    assert not torch.equal(l0, l1) and torch.equal(learner.logits(), PromptLearner(vlm, f, config('maple'), pool=pool).logits())
    assert loss==pytest.approx(np.mean([r['loss'] for r in rows])) and [r['step'] for r in rows]==[0,1,2,3]
    with pytest.raises(ValueError, match="UPL averages.*strategy 'fpl'"): fit_strategy(strategy('upl'), learner, learner.zero_shot(), steps=1000, progress=False)
    assert torch.equal(learner.logits(), l0) # refused before anything was trained
    fit_strategy(UPL(2, members=1), learner, learner.zero_shot(), steps=1, progress=False)
    with pytest.raises(ValueError, match="UPL averages.*strategy 'fpl'"): CAPConfig(dial='maple', strategy='upl')

def test_sets_of_candidates_are_learned():
    vlm,f,_ = parts()
    none = (torch.zeros(0, dtype=torch.long),)*2
    sel = PseudoLabels(torch.arange(6), targets()[:6], torch.ones(6), 10)
    learner,ends = PromptLearner(vlm, f, config()),[]
    for cand in (None, F.one_hot(sel.labels, 10).float(), torch.ones(6, 10)):
        learner.reset(0)
        before = learner.tuned.prompts.ctx.detach().clone()
        learner.learn(replace(sel, candidates=cand), none, 3, 0)
        ends.append(learner.tuned.prompts.ctx.detach()-before)
    close(ends[0], ends[1], 1e-6)
    assert ends[2].abs().max()<1e-6<ends[0].abs().max() # any class would do: nothing to learn

# elsewhere

@pytest.mark.parametrize('service', ['trackio','wandb'])
def test_logging_services(service, monkeypatch):
    "The service itself is outside; what it is told is recorded"
    told = []
    module = types.ModuleType(service)
    module.init = lambda **kw: told.append(('init', kw))
    module.log = lambda row: told.append(('log', row))
    module.finish = lambda: told.append(('finish',))
    monkeypatch.setitem(sys.modules, service, module)
    with log_to(service, 'prompts', name='first') as log: r = fit(config(), callback=log)
    assert told[0]==('init', dict(project='prompts', name='first')) and told[-1]==('finish',)
    assert [o[1] for o in told[1:-1]]==r.history.to_dict('records')

def test_logging_needs_the_service(monkeypatch):
    monkeypatch.setitem(sys.modules, 'trackio', None)
    with pytest.raises(ImportError, match='pip install trackio'): log_to('trackio', 'p')
    with pytest.raises(ValueError, match="'trackio' or 'wandb'"): log_to('tensorboard', 'p')

# several processes

SHARED = dict(text=('text', None), maple=('maple', None), regularised=('text', CalibratedLoss(momentum=.9)))

def share_batches(out):
    "Runs alone, then in two processes with half of each batch"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    parts()
    def go(env):
        pid = os.fork()
        if pid: return pid
        code = 1
        try:
            os.environ.update(env)
            for name,(dial,reg) in SHARED.items():
                r = fit(config(dial, batch_size=9, lr=.005), labeled=some(5), regulariser=reg, checkpoint=Path(out)/name/('two' if env else 'one'), every=4)
                np.savez(Path(out)/f"{name}-{env.get('RANK', 'alone')}", last=r.last.numpy(), loss=r.history.loss.to_numpy(), extra=r.history.regulariser.to_numpy(), **{k: v.numpy() for k,v in weights(r).items()})
            code = 0
        finally: os._exit(code)
    two = [go(dict(RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))) for i in range(2)]
    return max(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in (*two, go({})))

def test_two_processes(tmp_path):
    "Half a batch each, gradients added up: the same weights as one process with the whole batch"
    pytest.importorskip('accelerate')
    p = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-3000:]
    for name,(_,reg) in SHARED.items():
        alone,*two = [dict(np.load(tmp_path/f'{name}-{o}.npz')) for o in ('alone',0,1)]
        assert all(np.array_equal(two[0][k], two[1][k]) for k in alone) and alone['extra'].any()==(reg is not None)
        for k in alone: np.testing.assert_allclose(two[0][k], alone[k], atol=1e-4 if k in ('loss','extra') else 1e-5, rtol=0)
        assert end(tmp_path/name/'two')[1]['step']==15
    means = [end(tmp_path/'regularised'/o)[0]['regulariser.running_mean'] for o in ('one','two')]
    close(*means, 1e-4)

def test_each_process_has_its_gpu(monkeypatch):
    "What is chosen; no machine with several GPUs was at hand to run on"
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for size,rank,want in (('1','0','cuda'), ('4','0','cuda:0'), ('4','3','cuda:3')):
        monkeypatch.setenv('WORLD_SIZE', size); monkeypatch.setenv('LOCAL_RANK', rank)
        assert pick_device()==pick_device('cuda')==torch.device(want)
        assert [str(pick_device(o)) for o in ('cpu','cuda:1',torch.device('cuda', 2))]==['cpu','cuda:1','cuda:2'] # named ones stay
    monkeypatch.delenv('WORLD_SIZE'); monkeypatch.delenv('LOCAL_RANK')
    assert pick_device()==torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert pick_device().type!='cuda'

if __name__=='__main__': sys.exit(share_batches(sys.argv[1]))
