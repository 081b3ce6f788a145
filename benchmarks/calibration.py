"""How far confidence can be trusted, written to results/calibration.csv. Held-out images throughout.

- splits `base` and `new`: text prompts (CoOp) are learned on 16 images of each of the first half of the classes; both halves are tested, each among its own classes.
- split `test`: CAP without labels, all classes. `TS` is fitted on one half of the test images and measured on the other, both ways.
- results/conformal.csv: how often prediction sets hold the truth.

    python benchmarks/calibration.py [--seeds 3] [--only fashion_mnist] [--part prompts] [--method 'CE']
"""
import argparse, math, os, sys, time, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # small products: a second thread mostly waits
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np, torch
import torch.nn.functional as F
from scipy.stats import betabinom
from pla_nb.all import *
from pla_nb.calibrate import *
from pla_nb.prompts import TextPrompts
from pla_nb.pseudolabels import neighbours
from pla_nb.train import strong_view
import ledger
from accuracy import Case, tasks

KEY = ['dataset','split','method','seed']
RATE,SHOTS = 1e-2,16
STEPS = dict(fashion_mnist=(60,32), caltech101=(30,128)) # steps and images in each: texts are what takes time, so where there are many the steps are fewer and larger

def row(dataset, split, method, seed, proba, y, classes, temperature=1., seconds=0.):
    m = evaluate(np.asarray(proba), y, classes)
    return dict(dataset=dataset, split=split, method=method, seed=seed, accuracy=round(m.accuracy, 4), ece=round(m.ece, 4), ace=round(m.ace, 4), nll=round(m.nll, 4), brier=round(m.brier, 4),
                risk80=round(m.risk80, 4), gap=round(m.gap, 4), auroc=round(m.auroc, 4), temperature=round(temperature, 3), seconds=round(seconds, 1))

# prompts, from base classes to new ones
def ce(z, y, *_): return F.cross_entropy(z, y)
def plus(first, *more): return lambda *a: first(*a) + sum(f(*a) for f in more)
margin = lambda z,y,T,T0,z0: margin_penalty(z, y)
# of logits with scale 20; published for 100: the margin of MbLS is scaled with it, the weights of the other terms are as published
moments = lambda z,y,T,T0,z0: 5*moment_loss(T, T0)
near = lambda z,y,T,T0,z0: 8*kgcoop_distance(T, T0)

LOSSES = {'CE': ce, 'CE + margin': plus(ce, margin), 'CE + moments': plus(ce, moments), 'CE + margin + moments': plus(ce, margin, moments),
    'KgCoOp': plus(ce, near), 'KgCoOp + margin + moments': plus(ce, near, margin, moments),
    'MbLS': plus(ce, lambda z,y,T,T0,z0: .1*mbls(z, 2.)), 'ZS-Norm': lambda z,y,T,T0,z0: F.cross_entropy(zs_norm(z, z0), y), 'Penalty': plus(ce, lambda z,y,T,T0,z0: 10*range_penalty(z, z0)),
    'label smoothing': lambda z,y,*_: label_smoothing(z, y), 'focal': lambda z,y,*_: focal(z, y)}

def shots(y, n, seed): # (C*n,) images, n of each class or all there are, in an order in which each class comes first with its first image
    "Indices of the labeled images"
    rng = np.random.default_rng(seed)
    mine = [rng.permutation(np.flatnonzero(y==c))[:n] for c in np.unique(y)]
    return np.concatenate(mine),np.concatenate([np.arange(len(m)) for m in mine])

class Halves:
    "A data set whose first half of the classes has labels"
    def __init__(self, name, vlm):
        pool,test,_ = tasks(name)
        self.name,self.vlm = name,vlm
        f,t = features(vlm, pool),features(vlm, test)
        n = len(f.task.classes)//2
        y,yt = np.array(f.task.targets),np.array(t.task.targets)
        self.classes = dict(base=f.task.classes[:n+len(f.task.classes)%2], new=f.task.classes[n+len(f.task.classes)%2:])
        n = len(self.classes['base'])
        self.V,self.y = f.V[y<n],y[y<n]
        self.test = dict(base=(t.V[yt<n], yt[yt<n]), new=(t.V[yt>=n], yt[yt>=n]-n))
        self.T0 = {k: TextPrompts(vlm, c, n_ctx=0).frozen_texts() for k,c in self.classes.items()}

    def logits(self, split, T): return self.vlm.logit_scale*self.test[split][0]@T.T

def learn(h, loss, seed, keep): # texts of both halves
    "Text prompts that fit the images `keep` of the base classes"
    torch.manual_seed(seed)
    p = TextPrompts(h.vlm, h.classes['base'], n_ctx=4, init='a photo of a', seed=seed)
    steps,batch = STEPS[h.name]
    opt = torch.optim.Adam(p.parameters(), RATE)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    V,y,g,T0 = h.V[keep],torch.tensor(h.y[keep]),torch.Generator().manual_seed(seed),h.T0['base']
    z0 = h.vlm.logit_scale*V@T0.T
    for _ in range(steps):
        i = torch.randint(len(V), (batch,), generator=g)
        T = p.texts()
        l = loss(h.vlm.logit_scale*V[i]@T.T, y[i], T, T0, z0[i])
        opt.zero_grad(); l.backward(); opt.step(); sched.step()
    with torch.no_grad(): return {k: p.texts(c) for k,c in h.classes.items()}

def prompts(name, vlm, seeds, only):
    "Rows of base and new classes"
    h = Halves(name, vlm)
    def rows(method, seed, proba, temperature=1., seconds=0.):
        for k,p in proba.items(): yield row(h.name, k, method, seed, p, h.test[k][1], h.classes[k], temperature, seconds)
    soft = lambda T,k: h.logits(k, T[k]).softmax(1).numpy()
    if only in 'zero-shot': yield from rows('zero-shot', 0, {k: soft(h.T0, k) for k in h.classes})
    for seed in range(seeds):
        idx,rank = shots(h.y, SHOTS, seed)
        for method,loss in LOSSES.items():
            if only not in method and not (method=='CE' and only=='DAC'): continue
            began = time.time()
            T = learn(h, loss, seed, idx)
            if only in method: yield from rows(method, seed, {k: soft(T, k) for k in h.classes}, seconds=time.time()-began)
            if method=='CE' and only in 'DAC':
                d = DAC().fit(T['new'], h.T0['new'], T['base'], h.T0['base'])
                yield from rows('DAC', seed, dict(new=d(h.logits('new', T['new'])).numpy()))
        if only in 'TS':
            held = rank%4==3 # a quarter of the labeled images of each class
            T = learn(h, ce, seed, idx[~held])
            ts = TemperatureScaler().fit(h.vlm.logit_scale*h.V[idx[held]]@T['base'].T, h.y[idx[held]])
            yield from rows('TS', seed, {k: ts(h.logits(k, T[k])).numpy() for k in h.classes}, ts.temperature)

# CAP, without labels
def smooth(eps):
    "Label smoothing as a term beside cross-entropy"
    def term(z, y, *_): return eps*(F.cross_entropy(z, y, label_smoothing=1.)-F.cross_entropy(z, y))
    return term

ADDED = {'CAP': None, 'CAP + margin': CalibratedLoss.margin_only(), 'CAP + moments': CalibratedLoss.moments_only(), 'CAP + margin + moments': CalibratedLoss.paper(),
    'CAP + MbLS': lambda z,y,T,T0: .1*mbls(z, 2.), 'CAP + MbLS, weight .3': lambda z,y,T,T0: .3*mbls(z, 2.), 'CAP + MbLS, weight 1': lambda z,y,T,T0: mbls(z, 2.), 'CAP + label smoothing': smooth(.05), 'CAP by names': None} # the last without descriptions: names that mean something else to the model stay wrong

def cap(name, vlm, seeds, only):
    "Rows of the test images of all classes"
    c = Case(name, vlm)
    for seed in range(seeds):
        for method,added in ADDED.items():
            if only not in method: continue
            began = time.time()
            clf = CAP(vlm, CAPConfig(seed=seed)).fit(c.f.task, descriptions=c.said('names' if method=='CAP by names' else 'written descriptions'), features=c.f, diagnosis=c.diagnosis, progress=False, choose='mean', regulariser=added)
            yield from capped(c, clf, method, seed, time.time()-began)

def capped(c, clf, method, seed, seconds):
    "As it comes, with temperatures from agreement, and with temperatures from labels"
    z,pool = clf.logits(c.test.V, c.test.U),clf.logits(c.f.V, c.f.U)
    made = lambda what,p,t=1.: row(c.name, 'test', what, seed, p, c.y, c.classes, t, seconds)
    yield made(method, z.softmax(1).numpy())
    t = unlabeled_temperature(pool, cluster_agreement(pool, clf.head.evidence.vision(c.f.V, c.f.U), seed=seed))
    yield made(f'{method}, T from clusters', t(z).numpy(), t.temperature)
    if method=='CAP':
        t = unlabeled_temperature(pool, view_agreement(pool, disturbed(c, clf, seed)))
        yield made(f'{method}, T from views', t(z).numpy(), t.temperature)
    p,t = by_halves(TemperatureScaler, z, c.y, seed)
    yield made(f'{method}, TS', p, t)

def disturbed(c, clf, seed):
    "Logits of the pool in the strong view of training"
    u = clf.head.evidence.vision(c.f.V, c.f.U)
    s = strong_view(u, torch.arange(len(u)), neighbours(u, clf.head.cfg.n_neighbours), clf.head.cfg, torch.Generator().manual_seed(seed))
    with torch.no_grad(): return clf.head.logits(c.f.V, s)

def by_halves(make, z, y, seed): # probabilities of all images, mean temperature
    "Each half of the test images with a calibrator fitted on the other"
    p,order,t = np.zeros(tuple(z.shape)),np.random.default_rng(seed).permutation(len(y)),[]
    for mine,other in (np.array_split(order, 2), np.array_split(order, 2)[::-1]):
        fitted = make().fit(z[other], y[other])
        p[mine] = fitted(z[mine]).numpy()
        t.append(fitted.temperature)
    return p,float(np.mean(t))

# how often prediction sets hold the truth
def sets(name, vlm, seeds, only, splits=100, n=300, coverage=.9):
    "Coverage over random splits of the test images, and the size of the sets"
    if only: return
    c = Case(name, vlm)
    clf = CAP(vlm).fit(c.f.task, descriptions=c.said('written descriptions'), features=c.f, diagnosis=c.diagnosis, progress=False, choose='mean')
    p = clf.logits(c.test.V, c.test.U).softmax(1).numpy()
    for score in ('lac','aps'):
        held,size = [],[]
        for s in range(splits):
            a,b = np.split(np.random.default_rng(s).permutation(len(p)), [n])
            S = prediction_sets(p[a], c.y[a], p[b], coverage, score)
            held.append(S[np.arange(len(b)), c.y[b]].mean()); size.append(S.sum(1).mean())
        k,m = math.ceil((n+1)*coverage),len(p)-n
        low,high = betabinom.ppf([.025, .975], m, k, n+1-k)/m
        yield dict(dataset=name, score=score, labeled=n, splits=splits, promised=coverage, mean=round(np.mean(held), 4), least=round(min(held), 4), most=round(max(held), 4), low=round(low, 4), high=round(high, 4),
                   inside=round(np.mean([(low<=o<=high) for o in held]), 3), size=round(np.mean(size), 2))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--only', default='', help='one data set')
    a.add_argument('--part', default='', help='prompts, cap or sets'); a.add_argument('--method', default='', help='only methods that contain this')
    a = a.parse_args()
    torch.set_num_threads(1); torch.set_flush_denormal(True); warnings.simplefilter('ignore')
    vlm = VLM('starter', precision='fp32')
    for name in ('fashion_mnist','caltech101'):
        if a.only and name!=a.only: continue
        if not tasks(name): print(f'{name}: no photos here, skipped'); continue
        for part in (prompts, cap):
            if a.part not in part.__name__: continue
            for r in part(name, vlm, a.seeds, a.method):
                ledger.append('calibration.csv', [r], KEY)
                print(f"{r['dataset']:14} {r['split']:5} {r['method']:38} {r['seed']}  acc {r['accuracy']:.3f}  ece {r['ece']:.3f}  gap {r['gap']:+.3f}  nll {r['nll']:.3f}  risk80 {r['risk80']:.3f}  T {r['temperature']:.2f}  {r['seconds']:.0f} s", flush=True)
        if a.part in 'sets':
            for r in sets(name, vlm, a.seeds, a.method):
                ledger.append('conformal.csv', [r], ['dataset','score','labeled','promised'])
                print(r, flush=True)
