"""What descriptions and the choice among them do, written to results/descriptions.csv. Labels are read only to score.

    python benchmarks/descriptions.py [--seeds 3] [--only fashion_mnist] [--file 'my model=descriptions.json']

Zero-shot and recall are those of plain cosines; `accuracy_after` is CAP's, on held-out images.
"""
import argparse, os, sys, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np, torch
from pla_nb.all import *
from pla_nb.classifier import RULES, choose_texts, embed_candidates
from accuracy import Case, tasks
import ledger

KEY = ['dataset','engine','choice','seed']

def features_of(c, cands, choice, seed):
    "(C,d) class texts under a rule of choice"
    if choice=='names': return c.zero
    ev = Evidence.fit(c.f.V, c.zero, c.f.U); u = ev.vision(c.f.V, c.f.U)
    return choose_texts(c.f.V, sharpen(u, neighbours(u, 16)), cands, CAPConfig(seed=seed), choice, u, c.zero, mismatch=c.diagnosis.runs[0]).T

def rows(c, seeds, only=''):
    for engine in c.texts:
        if only not in engine: continue
        named = c.said(engine) is None
        for choice in ('names',) if named else RULES:
            for seed in range(seeds):
                cands = embed_candidates(c.vlm, c.classes, c.said(engine, seed))[1]
                T = features_of(c, cands, choice, seed)
                m = evaluate((c.vlm.logit_scale*c.test.V@T.T).softmax(1).numpy(), c.y, c.classes)
                wrong = [c.classes.index(o) for o in c.diagnosis.mismatched]
                fit = fit_head(c.f.V, T, c.f.U, CAPConfig(seed=seed), progress=False)
                after = float((fit.head(c.test.V, c.test.U).argmax(1).numpy()==c.y).mean())
                yield dict(dataset=c.name, engine='none' if named else engine, choice=choice, seed=seed, zero_shot=round(m.accuracy, 4),
                           recall_mismatched=round(float(np.nanmean(m.recall[wrong])), 4), accuracy_after=round(after, 4))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--only', default='', help='one data set'); a.add_argument('--engine', default='', help='only texts with this in their name')
    a.add_argument('--file', default='', help='descriptions of another engine, as NAME=FILE.json; with --only')
    a = a.parse_args()
    torch.set_num_threads(1); torch.set_flush_denormal(True); warnings.simplefilter('ignore')
    vlm = VLM('starter', precision='fp32')
    for name in ('fashion_mnist','caltech101'):
        if a.only and name!=a.only or not tasks(name): continue
        c = Case(name, vlm)
        if a.file:
            engine,_,path = a.file.rpartition('=')
            c.texts = {engine: [Descriptions.load(path)]}
            c.texts[engine][0].path = None # the file stays as it is
        for r in rows(c, a.seeds, a.engine):
            print(*r.values(), flush=True)
            ledger.append('descriptions.csv', [r], KEY) # what was measured is kept when a run is stopped
