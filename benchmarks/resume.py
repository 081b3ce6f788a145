"""Kill trainings of prompts at random places, resume them, compare the end with an undisturbed run; written to results/resume.csv.

    python benchmarks/resume.py [--kills 20] [--seed 0] [--out benchmarks/results/resume.csv]

Each training is a process of its own that sends itself SIGKILL: before or after the optimiser's step, while views are made, or while a checkpoint is being written.
Equal means: weights, momentum, lists, margin and counts are the same bit for bit, and so is the history.
"""
import argparse, csv, itertools, json, os, random, shutil, signal, sys, tempfile
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from safetensors import safe_open
from pla_nb import tune
from pla_nb.backbones import OpenClip
from pla_nb.data import fashion_mnist
from pla_nb.features import features
from pla_nb.pixels import pixels
from pla_nb.train import CAPConfig

HERE = Path(__file__).parent
PLACES = ['views','before the optimiser','after the optimiser','checkpoint']
BASE = dict(epochs=4, steps=6, batch_size=8, k=3, tau=.2, lr=.05, update_every=1, precision='fp32', dim=16, hidden=8, n_ctx=2)
CASES = [dict(dial='text', start='mixture'), dict(dial='maple', depth=2, start='zero-shot', balance=False, update='released', count='epoch'),
         dict(dial='text', start='zero-shot', balance=False, exclude_selected=True), dict(dial='maple', depth=2, start='mixture')]
STEPS,EVERY = BASE['epochs']*BASE['steps'],5

def small():
    "A ViT with random weights, and 60 images"
    vlm = OpenClip('ViT-S-32', False, device='cpu', precision='fp32', embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=16),
                   text_cfg=dict(context_length=32, vocab_size=49408, width=32, heads=2, layers=2))
    task = fashion_mnist('test').subset(range(60))
    return vlm,features(vlm, task, cache=False, progress=False),pixels(task, vlm.preprocess, cache=False, progress=False)

def fit(parts, case, folder, every=EVERY, **kw):
    vlm,f,pool = parts
    cfg = CAPConfig(**{**BASE, **case})
    return tune.fit_prompts(vlm, f, cfg, pool=pool if cfg.dial=='maple' else None, labeled=([0,1,2], f.task.targets[:3]), checkpoint=folder, every=every, progress=False, **kw)

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

def die_at(place, step):
    "Arrange for SIGKILL at the `step`-th visit of a place"
    visits = itertools.count()
    def fatal(f, after=False):
        def g(*a, **k):
            now = next(visits)==step
            if now and not after: die()
            out = f(*a, **k)
            if now: die()
            return out
        return g
    if place=='views':
        for o in (tune.FeatureViews, tune.PixelViews): o.strong = fatal(o.strong)
    elif place=='checkpoint': tune.atomic_write = lambda path, write: atomic(path, fatal(write, after=True)) # written, but not yet in place
    else: torch.optim.SGD.step = fatal(torch.optim.SGD.step, after=place.startswith('after'))

atomic = tune.atomic_write

def run(parts, case, folder, kill=None):
    "A training in a process of its own; how it ended"
    pid = os.fork()
    if not pid:
        try:
            if kill: die_at(*kill)
            fit(parts, case, folder)
            os._exit(0)
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def end(folder):
    "Tensors and history of the last checkpoint"
    with safe_open(Path(folder)/'prompts.safetensors', 'pt') as f: t,m = {k: f.get_tensor(k) for k in f.keys()},json.loads(f.metadata()['run'])
    return t,{k: v for k,v in m.items() if k!='seconds'}

def same(a, b):
    (t,m),(u,n) = a,b
    return t.keys()==u.keys() and all(torch.equal(t[k], u[k]) for k in t) and m==n

def main(kills, seed, out):
    parts,rng,rows = small(),random.Random(seed),[]
    with tempfile.TemporaryDirectory() as tmp:
        whole = {}
        for i in range(kills):
            c,place = i%len(CASES),PLACES[(i+i//len(CASES))%len(PLACES)]
            folder = Path(tmp)/f'{i}'
            if c not in whole:
                if run(parts, CASES[c], Path(tmp)/f'whole{c}'): raise SystemExit('the undisturbed run failed')
                whole[c] = end(Path(tmp)/f'whole{c}')
            step = rng.randrange(STEPS//EVERY+1 if place=='checkpoint' else STEPS)
            killed = run(parts, CASES[c], folder, (place, step))
            at = end(folder)[1]['step'] if (folder/'prompts.safetensors').exists() else 0
            done = run(parts, CASES[c], folder)
            rows.append(dict(dial=CASES[c]['dial'], case=c, place=place, visit=step, killed=killed==-signal.SIGKILL, resumed_at=at, finished=done==0, equal=done==0 and same(end(folder), whole[c])))
            print(rows[-1], flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open('w', newline='') as f:
        w = csv.DictWriter(f, rows[0], lineterminator='\n'); w.writeheader(); w.writerows(rows)
    bad = [r for r in rows if not (r['killed'] and r['finished'] and r['equal'])]
    print(f'{len(rows)} runs killed, {len(rows)-len(bad)} as if they had not been')
    return 1 if bad else 0

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--kills', type=int, default=20); a.add_argument('--seed', type=int, default=0)
    a.add_argument('--out', type=Path, default=HERE/'results'/'resume.csv')
    a = a.parse_args()
    sys.exit(main(a.kills, a.seed, a.out))
