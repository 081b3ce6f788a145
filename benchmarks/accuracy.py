"""Accuracy on held-out images, written to results/accuracy.csv. Training reads the labels that its paradigm allows: none in UL, two a class in
SSL, those of the seen classes in TRZSL, all of them in the linear probe.

    python benchmarks/accuracy.py [--seeds 3] [--only fashion_mnist] [--dial text] [--paradigm SSL] [--strategy cap] [--variant written] [--missing]
"""
import argparse, copy, os, sys, time, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # small products: a second thread mostly waits
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np, torch
from dataclasses import replace
from functools import partial
from sklearn.linear_model import LogisticRegression
import torch.nn.functional as F
from pla_nb.all import *
from pla_nb.classifier import embed_candidates, read_descriptions, zero_shot_proba
import ledger

HERE = Path(__file__).parent
SHARED = Path(os.environ.get('PLA_SHARED', HERE.parent.parent/'shared'))
KEY = ['dataset','model','paradigm','dial','strategy','variant','seed']

def tasks(name):
    "Unlabeled pool and held-out test images"
    if name=='fashion_mnist': return fashion_mnist('pool'),fashion_mnist('test'),'garment photo'
    root = SHARED/'data'/'caltech101'
    if not root.exists(): return None
    pool,test = [Task.from_folder(root/o) for o in ('train','test')]
    return pool,test,'photo'

def descriptions(name, vlm, f, context, seeds=3):
    "Descriptions by the embedded LLM, drawn anew for each seed, asked once and kept in files; a single draw where there are many classes"
    d = diagnose(vlm, f.task, features=f, progress=False)
    few = len(d.classes)<=20
    out = []
    for s in range(seeds if few else 1):
        path = HERE/'descriptions'/f'{name}_embedded_{s}.json'
        t = Descriptions.load(path) if path.exists() else describe(d.classes if few else d.doubtful, context, EmbeddedLLM(seed=s), n=5 if few else 3, confusable=d.confusable, path=path, cache=False)
        t.path = None # which sentence is chosen stays in memory: the file is what the model said
        out.append(t)
    return out

def unread(task):
    "The same task, without targets"
    return replace(task, targets=None)

class Case:
    "A data set, encoded once"
    def __init__(self, name, vlm):
        pool,test,context = tasks(name)
        self.name,self.vlm = name,vlm
        f,self.test = features(vlm, pool),features(vlm, test)
        self.targets,self.f = torch.tensor(f.task.targets),replace(f, task=unread(f.task))
        self.classes = self.f.task.classes
        self.y = np.array(self.test.task.targets)
        self.zero = vlm.encode_classes(self.classes)
        self.texts = {'names': None, 'written descriptions': read_descriptions(name if name=='fashion_mnist' else 'caltech101', self.classes, vlm.template), 'embedded LLM': descriptions(name, vlm, self.f, context)}
        self.diagnosis = diagnose(vlm, self.f.task, features=self.f, progress=False)
        self.T = {k: self._mean(self.said(k)) for k in self.texts}

    def said(self, name, seed=0):
        "The descriptions of a seed"
        t = self.texts[name]
        return t[seed%len(t)] if isinstance(t, list) else t

    def _mean(self, texts):
        return F.normalize(torch.stack([F.normalize(c, dim=1).mean(0) for c in embed_candidates(self.vlm, self.classes, texts)[1]]), dim=1)

    def paradigm(self, name):
        "The pool with the labels that a paradigm allows; the choice of images and classes is the published one"
        if name=='UL': return self.f.task
        task = replace(self.f.task, targets=self.targets.numpy())
        return task.ssl(2) if name=='SSL' else task.trzsl()

    def row(self, paradigm, dial, strategy, variant, seed, scores, seconds):
        seen = [self.classes.index(o) for o in self.paradigm(paradigm).seen] or None
        m = evaluate(scores if isinstance(scores, np.ndarray) else scores.softmax(1).numpy(), self.y, self.classes, seen)
        z = evaluate(zero_shot_proba(self.test.V, self.zero, self.vlm.logit_scale).numpy(), self.y, self.classes, seen)
        r = dict(dataset=self.name, model=self.vlm.name, paradigm=paradigm, dial=dial, strategy=strategy, variant=variant, seed=seed, zero_shot=z.accuracy, accuracy=m.accuracy,
                 macro_accuracy=m.macro_accuracy, gini=m.gini, worst10=m.worst10, seen=m.seen, unseen=m.unseen, harmonic=m.harmonic, zero_shot_harmonic=z.harmonic)
        return {k: round(v, 4) if isinstance(v, float) else v for k,v in r.items()} | dict(seconds=round(seconds, 2))

def timed(f):
    t = time.time(); x = f()
    return x,time.time()-t

def probe(c):
    "Ceiling: logistic regression with all labels of the pool"
    space = VisionSpace.fit(c.f.U, 512)
    m = LogisticRegression(C=10, max_iter=300).fit(space(c.f.U).numpy(), c.targets.numpy())
    return m.predict_proba(space(c.test.U).numpy())

def mix(c, texts, plain):
    "The mixture without training: as first tried (`plain`), or as the library does it"
    space,T = VisionSpace.fit(c.f.U, 1280 if plain else 256),c.T[texts]
    if plain:
        z,zt = zscore(c.f.V@T.T),zscore(c.test.V@T.T)
        m = mixture(z, space(c.f.U), 20., 1., 30, balanced=False, starts=('plain',))
    else:
        z,zt = centered_scores(c.f.V, T),centered_scores(c.test.V, T, c.f.V.mean(0))
        m = mixture(z, space(c.f.U))
    return m.scores(zt, space(c.test.U))

def adapted(c, texts, paradigm='UL', choose='auto', preset=None, **kw):
    "Logits of the test images after `CAP(...).fit`"
    cfg = getattr(CAPConfig, preset)(**kw) if preset else CAPConfig(**kw)
    f = replace(c.f, task=c.paradigm(paradigm))
    clf = CAP(c.vlm, cfg).fit(f.task, descriptions=c.said(texts, cfg.seed), features=f, diagnosis=c.diagnosis, progress=False, choose=choose)
    return clf.logits(c.test.V, c.test.U)

STRATEGIES = ('fpl','ifpl','upl','grip','cpl','cap')
# one budget for all strategies of a data set: a step of text prompts encodes every class
BUDGET = dict(fashion_mnist=dict(epochs=5, steps=30), caltech101=dict(epochs=5, steps=12))
WRITTEN = 'written descriptions'
ABLATIONS = {'no growth': dict(grow=False), 'no sharpening': dict(hops=0), 'no balance': dict(balance=False), 'estimated prior': dict(prior='estimate'), 'no vision-only features': dict(vision=False),
    'no text training': dict(train_text=False), 'no adapters': dict(adapters=False), 'paper preset': dict(preset='paper'), 'released preset': dict(preset='released')}
# {concept alignment on, off} x {margin off, δ, δ/(2-δ)} x {independent, shared adapters}
GRID = {f'{t or "names"}, {a}, {m}, {s}': (t, kw_a | kw_m | kw_s)
    for t,a,kw_a in ((WRITTEN, 'aligned', {}), ('names', 'not aligned', dict(start='zero-shot')))
    for m,kw_m in (('margin off', dict(margin=0.)), ('margin δ', dict(weighting='paper')), ('margin δ/(2-δ)', {}))
    for s,kw_s in (('independent adapters', {}), ('shared adapters', dict(shared_adapters=True)))}

def half(c, seed):
    "The same with a random half of the pool: how much the choice of images moves the result"
    idx = np.sort(np.random.default_rng(seed).permutation(len(c.f))[:len(c.f)//2])
    part = copy.copy(c)
    part.f,part.targets = c.f.subset(idx),c.targets[idx]
    part.diagnosis = diagnose(c.vlm, part.f.task, features=part.f, progress=False)
    return adapted(part, WRITTEN, seed=seed)

def jobs(c, seeds):
    "(paradigm, dial, strategy, variant, seed, what to run) of a data set, the most wanted first"
    yield 'UL','features','linear probe','all labels',0,partial(probe, c)
    for paradigm in ('UL','SSL','TRZSL'):
        for strategy in STRATEGIES:
            for seed in range(seeds): yield paradigm,'features',strategy,WRITTEN,seed,partial(adapted, c, WRITTEN, paradigm, strategy=strategy, seed=seed)
    for t in ('names','embedded LLM'):
        for strategy in STRATEGIES if t=='names' else ('fpl','cap'):
            for seed in range(seeds): yield 'UL','features',strategy,t,seed,partial(adapted, c, t, strategy=strategy, seed=seed)
    for t in c.texts:
        for n,plain in (('mixture, plain', True), ('mixture', False)): yield 'UL','features',n,t,0,partial(mix, c, t, plain)
    for n,kw in ABLATIONS.items():
        for seed in range(seeds): yield 'UL','features','cap',f'{WRITTEN}, {n}',seed,partial(adapted, c, WRITTEN, seed=seed, **kw)
    for seed in range(seeds): yield 'UL','features','cap',f'{WRITTEN}, random half of the pool',seed,partial(half, c, seed)
    for seed in range(seeds): yield 'UL','features','cap',f"{WRITTEN}, the paper's choice",seed,partial(adapted, c, WRITTEN, choose='paper', seed=seed)
    for n,(t,kw) in GRID.items():
        for seed in range(seeds): yield 'UL','features','cap',f'grid: {n}',seed,partial(adapted, c, t, seed=seed, **kw)
    for paradigm in ('UL','SSL','TRZSL'):
        for strategy in STRATEGIES:
            for seed in range(seeds): yield paradigm,'text',strategy,WRITTEN,seed,partial(adapted, c, WRITTEN, paradigm, dial='text', strategy=strategy, seed=seed, **BUDGET[c.name])

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--only', default='', help='one data set')
    for o in ('paradigm','dial','strategy','variant'): a.add_argument(f'--{o}', default='', help=f'only a {o} that contains this')
    a.add_argument('--missing', action='store_true', help='only what the ledger lacks')
    a = a.parse_args()
    torch.set_num_threads(1); torch.set_flush_denormal(True); warnings.simplefilter('ignore')
    vlm = VLM('starter', precision='fp32')
    for name in ('fashion_mnist','caltech101'):
        if a.only and name!=a.only: continue
        if not tasks(name): print(f'{name}: no photos in {SHARED}, skipped'); continue
        c = Case(name, vlm)
        there = {tuple(o[k] for k in KEY) for o in ledger.read('accuracy.csv')}
        for *what,run in jobs(c, a.seeds):
            if a.missing and (name, vlm.name, *map(str, what)) in there: continue
            if any(getattr(a, k) not in v for k,v in zip(('paradigm','dial','strategy','variant'), what)): continue
            r = c.row(*what, *timed(run))
            print(f"{name:14} {r['paradigm']:5} {r['dial']:8} {r['strategy']:14} {r['variant']:45} {r['seed']}  {r['zero_shot']:.3f} -> {r['accuracy']:.3f}  worst {r['worst10']:.2f}  {r['seconds']:.1f} s", flush=True)
            ledger.append('accuracy.csv', [r], KEY) # what was measured is kept when a run is stopped
