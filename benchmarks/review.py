"""What a person's answers to a few images are worth, written to results/review.csv. The person is simulated: she answers with the true label.

    python benchmarks/review.py [--seeds 3] [--pool 2000] [--skip]
"""
import argparse, os, sys, tempfile, warnings
from dataclasses import replace
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # small products: a second thread mostly waits
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import numpy as np
from pla_nb.all import *
from pla_nb.review import Review, group_labels, review_classifier, typical_images, worth_a_look
import ledger

KEY = ['dataset','texts','answers','choice','seed']

def table(choice, clf, k, seed):
    "The images that she is shown"
    f = clf.run['features']
    p = clf.logits(f.V, f.U).softmax(1).numpy()
    if choice=='random': return worth_a_look(p, k=0, random=k, seed=seed)
    if choice=='typical':
        t = worth_a_look(p, k=2*k, typical=typical_images(f.U, k, seed))
        return t[t['kind']=='typical']
    if choice=='doubtful': return worth_a_look(p, clf.run['before'].numpy(), group_labels(f.U, p, seed=seed), k)
    with tempfile.TemporaryDirectory() as d: return review_classifier(clf, k=k, seed=seed, path=Path(d)/'r.json').table # as it comes

def answered(clf, t, truth):
    "The task with her answers"
    with tempfile.TemporaryDirectory() as d:
        r = Review(clf.run['features'].task, t, path=Path(d)/'r.json')
        for i in t['image']: r.change(i, int(truth[i]))
        return r.to_task(checks=True)

def run(seeds, n, skip=False):
    vlm = VLM('starter', precision='fp32')
    pool,test = features(vlm, fashion_mnist('pool')),features(vlm, fashion_mnist('test'))
    for seed in range(seeds):
        idx = np.random.default_rng(seed).permutation(len(pool))[:n]
        f,truth = pool.subset(idx),pool.task.targets[idx]
        f = replace(f, task=replace(f.task, targets=None))
        d = diagnose(vlm, f.task, features=f, progress=False)
        for texts in (None, 'fashion_mnist'):
            row = dict(dataset='fashion_mnist', texts='written descriptions' if texts else 'names', seed=seed)
            if skip and any(all(o[k]==str(v) for k,v in row.items()) for o in ledger.read('review.csv')): continue
            cap = CAP(vlm, seed=seed)
            fit = lambda task: cap.fit(task, read_descriptions(texts, task.classes, vlm.template), features=replace(f, task=task), diagnosis=d, progress=False, choose='mean')
            acc = lambda c: float((c.logits(test.V, test.U).argmax(1).numpy()==test.task.targets).mean())
            clf = fit(f.task)
            pred = clf.logits(f.V, f.U).argmax(1).numpy()
            rows = [dict(row, answers=0, choice='none', accuracy=acc(clf), wrong='')]
            for k in (20, 50):
                for choice in ('review','typical','doubtful','random'):
                    t = table(choice, clf, k, seed)
                    rows.append(dict(row, answers=len(t), choice=choice, accuracy=acc(fit(answered(clf, t, truth))), wrong=float((pred!=truth)[t['image']].mean())))
            ledger.append('review.csv', rows, KEY)
            for o in rows: print(o, flush=True)

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--seeds', type=int, default=3)
    a.add_argument('--pool', type=int, default=2000)
    a.add_argument('--skip', action='store_true', help='what is measured already')
    a = a.parse_args()
    warnings.filterwarnings('ignore')
    run(a.seeds, a.pool, a.skip)
