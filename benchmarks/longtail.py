"""Long-tailed pools, written to results/longtail.csv: what it costs to presume equal classes, and what an estimate of their shares wins back.

    python benchmarks/longtail.py [--seeds 3] [--only caltech101] [--imbalance 1 10 50] [--method 'estimated prior']

Classes are cut to an exponential profile, in an order that the seed shuffles; accuracy is that of the whole, balanced test set.
Head, middle and tail are thirds of the classes by the images that they have in the pool. No label of the pool is read, except by the row `cap, true prior` (a bound).
"""
import argparse, os, sys, time, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # small products: a second thread mostly waits
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np, torch
import torch.nn.functional as F
from pla_nb.all import *
from pla_nb.classifier import embed_candidates, read_descriptions
from pla_nb.pseudolabels import FPL
from pla_nb.train import HeadLearner, fit_strategy
from accuracy import tasks
import ledger

KEY = ['dataset','imbalance','prior','seed']

def long_tailed(
    targets, # (N,) class of each image
    imbalance:float, # images of the largest class for each image of the smallest
    seed:int=0, # which classes are large, and which images stay
)->np.ndarray: # (M,) rows that stay, ascending
    "A subset whose class sizes fall exponentially from the largest class"
    y,rng = np.asarray(targets),np.random.default_rng(seed)
    C,most = y.max()+1,np.bincount(y).max()
    sizes = [max(1, round(most*imbalance**(-i/(C-1)))) for i in range(C)] # a class that has fewer keeps all
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y==c))[:n] for c,n in zip(rng.permutation(C), sizes)]))

def thirds(n): # (C,) class sizes -> (head, middle, tail) class indices
    order,t = np.argsort(-np.asarray(n), kind='stable'),round(len(n)/3)
    return order[:t],order[t:len(n)-t],order[len(n)-t:]

class Case:
    "A data set, encoded once; texts are the written descriptions"
    def __init__(self, name, vlm):
        pool,test,_ = tasks(name)
        self.name,self.vlm,self.f,self.test = name,vlm,features(vlm, pool),features(vlm, test)
        texts = read_descriptions(name if name=='fashion_mnist' else 'caltech101', pool.classes, vlm.template)
        self.T = F.normalize(torch.stack([F.normalize(c, dim=1).mean(0) for c in embed_candidates(vlm, pool.classes, texts)[1]]), dim=1)
        self.names,self.y = vlm.encode_classes(pool.classes),np.array(self.test.task.targets)

    def recalls(self, logits, n):
        "Accuracy, and that of the three groups"
        ok = logits.argmax(1).numpy()==self.y
        return [ok.mean(),*(ok[np.isin(self.y, g)].mean() for g in thirds(n))]

def methods(c, f, shares, seed):
    "(name, what gives a Fit or logits)"
    run = lambda **kw: fit_head(f.V, c.T, f.U, CAPConfig(seed=seed, **kw), progress=False)
    def few():
        h = HeadLearner(f.V, c.T, f.U, CAPConfig(seed=seed))
        return fit_strategy(FPL(), h, h.zero_shot(), seed=seed, progress=False)
    yield 'zero-shot, described',lambda: c.test.V@c.T.T
    yield 'fpl',few
    yield 'cap, default',run
    yield 'cap, uniform prior',lambda: run(prior='uniform')
    yield 'cap, no balance',lambda: run(balance=False, prior='uniform')
    yield 'cap, estimated prior',lambda: run(prior='estimate')
    yield 'cap, estimated prior, zero-shot start',lambda: run(prior='estimate', start='zero-shot')
    yield 'cap, true prior',lambda: run(prior=shares.tolist())

def rows(c, imbalance, seed, only=''):
    "One subset, all methods"
    y = np.array(c.f.task.targets)
    idx = long_tailed(y, imbalance, seed) if imbalance>1 else np.arange(len(y))
    f,n = c.f.subset(idx),np.bincount(y[idx], minlength=len(c.T))
    zero,shares = c.recalls(c.test.V@c.names.T, n),torch.tensor(n/n.sum()).float()
    for name,make in methods(c, f, shares, seed):
        if only not in name: continue
        t = time.time(); fit = make(); t = time.time()-t
        l = fit if torch.is_tensor(fit) else fit.head(c.test.V, c.test.U)
        a,head,middle,tail = c.recalls(l, n)
        prior = getattr(fit, 'prior', None)
        tv = '' if torch.is_tensor(fit) or name=='fpl' else float((shares-(prior if prior is not None else 1/len(n))).abs().sum()/2)
        yield dict(dataset=c.name, imbalance=imbalance, prior=name, seed=seed, images=len(idx), zero_shot=round(zero[0], 4), accuracy=round(a, 4), head=round(head, 4), middle=round(middle, 4), tail=round(tail, 4),
                   head_zero_shot=round(zero[1], 4), gini=round(evaluate(l.softmax(1).numpy(), c.y, c.f.task.classes).gini, 4), prior_error=tv, seconds=round(t, 2))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--only', default='', help='one data set'); a.add_argument('--method', default='', help='only rows that contain this'); a.add_argument('--imbalance', type=int, nargs='*', default=[1,10,50])
    a = a.parse_args()
    torch.set_num_threads(1); torch.set_flush_denormal(True); warnings.simplefilter('ignore')
    vlm = VLM('starter', precision='fp32')
    for name in ('fashion_mnist','caltech101'):
        if a.only and name!=a.only: continue
        if not tasks(name): print(f'{name}: photos not found, skipped'); continue
        c = Case(name, vlm)
        for imb in a.imbalance:
            for seed in range(a.seeds):
                out = list(rows(c, imb, seed, a.method))
                for r in out: print(f"{name:14} {imb:3} {seed} {r['prior']:38} {r['accuracy']:.3f}  head {r['head']:.3f} ({r['head_zero_shot']:.3f} zero-shot)  middle {r['middle']:.3f}  tail {r['tail']:.3f}  gini {r['gini']:.2f}  {r['seconds']:.1f} s", flush=True)
                ledger.append('longtail.csv', out, KEY)
