"""Accuracy on held-out images, written to results/accuracy.csv. No label of the training pool is read, except by the linear probe.

    python benchmarks/accuracy.py [--seeds 3] [--only fashion_mnist] [--variant 'no margin']
"""
import argparse, copy, os, sys, time, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # small products: a second thread mostly waits
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np, torch
from dataclasses import replace
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

    def row(self, strategy, variant, seed, scores, seconds):
        m = evaluate(scores if isinstance(scores, np.ndarray) else scores.softmax(1).numpy(), self.y, self.classes)
        z = evaluate(zero_shot_proba(self.test.V, self.zero, self.vlm.logit_scale).numpy(), self.y, self.classes)
        return dict(dataset=self.name, model=self.vlm.name, paradigm='UL', dial='features', strategy=strategy, variant=variant, seed=seed,
                    zero_shot=round(z.accuracy, 4), accuracy=round(m.accuracy, 4), macro_accuracy=round(m.macro_accuracy, 4), gini=round(m.gini, 4), worst10=round(m.worst10, 4), seconds=round(seconds, 2))

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

def cap(c, texts, choose='mean', **kw):
    said = c.said(texts, kw.get('seed', 0))
    clf = CAP(c.vlm, CAPConfig(**kw) if 'preset' not in kw else getattr(CAPConfig, kw['preset'])(**{k: v for k,v in kw.items() if k!='preset'})).fit(c.f.task, descriptions=said, features=c.f, diagnosis=c.diagnosis, progress=False, choose=choose)
    return clf.logits(c.test.V, c.test.U)

FPL = dict(start='zero-shot', grow=False, margin=0., balance=False, tau=2., hops=0, text_weight=.5)
ABLATIONS = {'no margin': dict(margin=0.), 'margin δ': dict(weighting='paper'), 'no growth': dict(grow=False), 'no alignment by clusters': dict(start='zero-shot'),
    'no sharpening': dict(hops=0), 'no balance': dict(balance=False), 'no vision-only features': dict(vision=False), 'no text training': dict(train_text=False),
    'no adapters': dict(adapters=False), 'paper preset': dict(preset='paper'), 'released preset': dict(preset='released')}

def half(c, seed):
    "The same with a random half of the pool: how much the choice of images moves the result"
    idx = np.sort(np.random.default_rng(seed).permutation(len(c.f))[:len(c.f)//2])
    part = copy.copy(c)
    part.f = c.f.subset(idx)
    part.diagnosis = diagnose(c.vlm, part.f.task, features=part.f, progress=False)
    return cap(part, 'written descriptions', seed=seed)

def jobs(c, seeds):
    "(strategy, variant, seed, what to run) of a data set"
    yield 'linear probe','all labels',0,lambda: probe(c)
    for t in c.texts:
        for n,plain in (('mixture, plain', True), ('mixture', False)): yield n,t,0,lambda: mix(c, t, plain)
        for seed in range(seeds):
            yield 'fpl',t,seed,lambda: cap(c, t, seed=seed, **FPL)
            yield 'cap',t,seed,lambda: cap(c, t, seed=seed)
            if t!='names': yield 'cap',f'{t}, best supported only',seed,lambda: cap(c, t, 'support', seed=seed)
    for n,kw in ABLATIONS.items():
        for seed in range(seeds): yield 'cap',f'written descriptions, {n}',seed,lambda: cap(c, 'written descriptions', seed=seed, **kw)
    for seed in range(seeds): yield 'cap','written descriptions, random half of the pool',seed,lambda: half(c, seed)

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--only', default='', help='one data set'); a.add_argument('--variant', default='', help='only variants that contain this')
    a = a.parse_args()
    torch.set_num_threads(1); torch.set_flush_denormal(True); warnings.simplefilter('ignore')
    vlm = VLM('starter')
    for name in ('fashion_mnist','caltech101'):
        if a.only and name!=a.only: continue
        if not tasks(name): print(f'{name}: no photos in {SHARED}, skipped'); continue
        c,out = Case(name, vlm),[]
        for strategy,variant,seed,run in jobs(c, a.seeds):
            if a.variant not in variant: continue
            r = c.row(strategy, variant, seed, *timed(run))
            out.append(r); print(f"{r['dataset']:14} {r['strategy']:15} {r['variant']:45} {r['seed']}  {r['zero_shot']:.3f} -> {r['accuracy']:.3f}  worst {r['worst10']:.2f}  {r['seconds']:.1f} s", flush=True)
        ledger.append('accuracy.csv', out, KEY)
