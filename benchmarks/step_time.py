"""Seconds and memory of a training step of the maple dial, against the same arithmetic arranged as CAP's released code arranges it, into results/step_time.csv.

Both take the same weights and the same 32 images of each kind (labeled, pseudolabeled, weak and strong view of unlabeled ones) and have to give the same loss.
ours: `tune.step_losses`, that is the text tower once, cut behind the longest sentence, one forward pass with a graph and one without; bytes from `pixels`;
 the margin is refreshed from the features that the weak views left; of the last image block only the token that is read.
released: the text tower for each of the four batches, at 77 positions; four forward passes of the image tower, each with a graph and with all tokens in the last block;
 files are decoded at each visit and transformed three times; the margin is refreshed with the whole model, batch by batch.
A refresh is too long to be repeated: one batch of it is timed and counted as often as it occurs (16 images a class, every 50 steps).
On a machine that others use, `--clock cpu` counts seconds of processor time, divided by the threads: what a clock would show if the machine were idle.
Rows of dial 'maple, images only' are the part of those seconds that goes into reading and cutting images.
loss_difference: of our step from the released arrangement in fp32; for bf16 it is what bf16 costs.
"""
import argparse, ctypes, os, statistics, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
# a thread that waits must not keep others from working
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
import numpy as np, torch
import torch.nn.functional as F
from PIL import Image
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from sklearn.datasets import load_sample_image
from torchvision import transforms
sys.path.insert(0, str(Path(__file__).parent))
import ledger
from pla_nb import prompts
from pla_nb.backbones import OpenClip
from pla_nb.data import FileImages
from pla_nb.margin import margin_loss, margin_matrix, similarity_fusion
from pla_nb.pixels import pixels
from pla_nb.prompts import MaPLe
from pla_nb.train import CAPConfig
from pla_nb.tune import PixelViews, StepBatch, Tuned, step_losses

B,STEPS,PER_CLASS,LOOSE = 32,50,16,256 # images of each kind, steps between refreshes, pseudolabels per class, side of the images for random crops
KEYS = ['dial','model','paradigm','classes','device','precision']

def write_photos(root, n=4*B):
    "JPEG files of 500 x 375, as photos of benchmarks are"
    rng,photos = np.random.default_rng(0),[Image.fromarray(load_sample_image(f'{o}.jpg')) for o in ('china','flower')]
    for i in range(n):
        x,y = rng.integers(0, 640-500),rng.integers(0, 427-375)
        photos[i%2].crop((x, y, x+500, y+375)).save(root/f'{i}.jpg', quality=90)
    return FileImages([root/f'{i}.jpg' for i in range(n)])

@dataclass
class Setting:
    "One model, one list of classes, one set of images"
    ours: Tuned
    released: Tuned # the same weights, encoding 77 positions
    batch: StepBatch
    M: torch.Tensor # (C,C)

def setting(vlm, pool, C):
    g,cfg = torch.Generator().manual_seed(0),CAPConfig(dial='maple', precision=vlm.precision, residual=.01).resolved(vlm.logit_scale)
    models = [Tuned(MaPLe(vlm, IMAGENET_CLASSNAMES[:C]), cfg, vlm.dim, vlm.logit_scale) for _ in range(2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for o in ('text','main','pseudo'): getattr(models[0], o).up.reset_parameters() # an adapter that adds nothing would hide a mistake
    models[1].load_state_dict(models[0].state_dict())
    models[1].prompts._tower.cuts = False
    views,kinds = PixelViews(pool, vlm.preprocess, vlm.device),torch.arange(3*B).split(B)
    y = lambda: torch.randint(C, (B,), generator=g)
    batch = StepBatch(pseudo=views.weak(kinds[0]), yhat=y(), labeled=views.weak(kinds[1]), y=y(), weak=views.weak(kinds[2]), strong=views.strong(kinds[2], g))
    with torch.no_grad():
        for m in models: m.texts() # tokens are made once
    return Setting(*models, batch, 12*torch.rand(C, C, generator=g).fill_diagonal_(0))

# every weak view counts as confident (tau 0), so that none of the work is left out

def ours(s, pieces=False): return step_losses(s.ours, s.batch, s.M, 0.).total

def every_token(f):
    "The same with all tokens sent through the last block of the image tower, as the released code does"
    def g(*args):
        plain,prompts._is_plain = prompts._is_plain,lambda block: False
        try: return f(*args)
        finally: prompts._is_plain = plain
    g.__name__ = f.__name__
    return g

@every_token
def released(s, pieces=False): # pieces: gradients of each loss at once, for want of memory
    m,b,total = s.released,s.batch,0.
    guess = m.logits(m.images(b.weak), m.texts()[1], m.main).argmax(1)
    for x,y,adapter in ((b.labeled, b.y, m.main), (b.pseudo, b.yhat, m.main), (b.strong, guess, m.pseudo)):
        loss = margin_loss(m.logits(m.images(x), m.texts()[1], adapter), y, s.M)
        if pieces: loss.backward()
        total = total+(loss.detach() if pieces else loss)
    return total

def step(s, arrangement, pieces=False):
    "One step, up to new weights (at a rate of 0: the next step must find the old ones)"
    opt = torch.optim.SGD(list(getattr(s, arrangement.__name__).trained().values()), 0., momentum=.9)
    opt.zero_grad()
    loss = arrangement(s, pieces)
    if loss.requires_grad: loss.backward()
    opt.step()
    return float(loss.detach())

def released_needs(C, precision): # MB
    "Memory of a step as released, on the line through the rows that are there"
    rows = [o for o in ledger.read('step_time.csv') if o['dial']=='maple' and o['precision']==precision and not o['note'] and int(o['classes'])!=C]
    if len(rows)<2: return 7000+100*C
    return float(np.polyval(np.polyfit([int(o['classes']) for o in rows], [float(o['released_mb']) for o in rows], 1), C))

def free_mb(): return next(int(l.split()[1]) for l in open('/proc/meminfo') if l.startswith('MemAvailable'))/1024

@torch.no_grad()
def refresh_ours(s, C):
    "The margin from texts and from features at hand; the epoch's count of predictions takes the texts a second time"
    m,n = s.ours,PER_CLASS*C
    V,y = F.normalize(torch.ones(n, m.text.down.in_features), dim=1),torch.arange(n)%C
    m.logits(V, m.texts()[1], m.main)
    W = V.new_zeros(C, V.shape[1]).index_add_(0, y, m.main(V))
    return margin_matrix(similarity_fusion(m.texts()[0], W), torch.rand(C))

@every_token
@torch.no_grad()
def refresh_released(s, images, p):
    "One batch of the margin pass: both towers, images decoded again"
    m = s.released
    x = torch.stack([three_times(images, i, p)[0] for i in range(B)])
    return m.main(m.images(x)), m.texts()

def clip_transform(p):
    return transforms.Compose([transforms.Resize(p.size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(p.size), transforms.ToTensor(), transforms.Normalize(p.mean, p.std)])

def strong_transform(p):
    return transforms.Compose([transforms.RandomResizedCrop(p.size, interpolation=transforms.InterpolationMode.BICUBIC), transforms.RandomHorizontalFlip(1.), transforms.ToTensor(), transforms.Normalize(p.mean, p.std)])

def three_times(images, i, p, strong=False):
    "An item of the released data set: the image, and a view in place of each augmentation, given or not"
    im = Image.open(images.paths[i]).convert('RGB')
    plain = clip_transform(p)
    return [plain(im), plain(im), (strong_transform(p) if strong else plain)(im)]

def input_ours(pool, p):
    for k in range(3): p.normalize(pool.squares(range(k*B, (k+1)*B)))
    p.normalize(pool.strong(range(B), torch.Generator().manual_seed(0)))

def input_released(images, p):
    for k in range(3):
        for view in zip(*(three_times(images, i, p, strong=k==2) for i in range(k*B, (k+1)*B))): torch.stack(view)

class Peak:
    "Largest resident memory while a block runs, MB: the kernel's mark is set back first"
    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        return self
    def __exit__(self, *a):
        self.mb = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024

def timed(f, clock, threads):
    "Seconds, MB and result"
    now = (lambda: time.process_time()/threads) if clock=='cpu' else time.perf_counter
    with Peak() as p:
        start = now()
        out = f()
        took = now()-start
    return took, p.mb, out

def gradients_differ(s):
    "Largest difference of the last two steps' gradients, as a share of the largest gradient of a tensor"
    pairs = zip(s.ours.trained().values(), s.released.trained().values())
    return max(float((a.grad-b.grad).abs().max()/b.grad.abs().max()) for a,b in pairs)

def measure(vlm, images, pool, C, repeats, reference=None, clock='wall', threads=2):
    "Rows of one list of classes: medians of alternating steps; and the loss of the released arrangement"
    s,took,mb,loss = setting(vlm, pool, C),dict(ours=[], released=[]),{},{}
    need = released_needs(C, vlm.precision)
    pieces = need+3000>free_mb()
    for _ in range(repeats):
        for f in (ours, released):
            name = f.__name__
            t,mb[name],loss[name] = timed(lambda: step(s, f, pieces), clock, threads)
            took[name].append(t)
            print(f'  {name} {t:.1f} s, {mb[name]:.0f} MB, loss {loss[name]:.6f}, load {os.getloadavg()[0]:.1f}', flush=True)
    if pieces: mb['released'] = need
    if vlm.precision=='fp32': assert (d := gradients_differ(s))<1e-3, f'the gradients differ by {d}'
    difference = abs(loss['ours']-(loss['released'] if reference is None else reference))
    if vlm.precision=='fp32': assert difference<1e-4, f'the losses differ by {difference}'
    p = vlm.preprocess
    # decoding and cutting run on one core
    inputs = [statistics.median(timed(f, clock, 1)[0] for _ in range(3)) for f in (lambda: input_ours(pool, p), lambda: input_released(images, p))]
    again = [timed(lambda: refresh_ours(s, C), clock, threads)[0]/STEPS, timed(lambda: refresh_released(s, images, p), clock, threads)[0]*PER_CLASS*C/B/STEPS]
    total = [statistics.median(t)+i+r for t,i,r in zip(took.values(), inputs, again)]
    print(f'  images {inputs[0]:.3f} and {inputs[1]:.2f} s, refresh {again[0]:.3f} and {again[1]:.2f} s', flush=True)
    row = dict(dial='maple', model=vlm.name, paradigm='SSL', classes=C, device=ledger.machine(), precision=vlm.precision, **_seconds(total),
               ours_mb=round(mb['ours']), released_mb=round(mb['released']), loss_difference=difference, repeats=repeats, threads=threads, clock=clock,
               note='gradients loss by loss, memory of released extrapolated from fewer classes' if pieces else '')
    part = dict(row, dial='maple, images only', **_seconds(inputs), ours_mb='', released_mb='', loss_difference='', repeats=3, threads=1, note='')
    return [row,part],loss['released']

def _seconds(pair): return dict(ours_s=pair[0], released_s=pair[1], ratio=pair[1]/pair[0])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--classes', type=int, nargs='+', default=[10,47,100,200])
    p.add_argument('--precision', nargs='+', default=['fp32','bf16'])
    p.add_argument('--model', default='ViT-B-32-quickgelu')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--clock', choices=['wall','cpu'], default='wall')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    with tempfile.TemporaryDirectory() as d:
        images = write_photos(Path(d))
        vlm = OpenClip(o.model, False, device='cpu', precision='fp32')
        pool = pixels(images, vlm.preprocess, cache=Path(d)/'cache', loose=LOOSE, workers=0, progress=False)
        s = setting(vlm, pool, 2)
        s.batch = StepBatch(**{k: None if v is None else v[:2] for k,v in vars(s.batch).items()})
        step(s, ours) # what only the first step needs is made now
        del s
        for C in o.classes:
            reference = None # the released arrangement in fp32: what bf16 costs is measured against it
            for vlm.precision in o.precision:
                print(f'{C} classes, {vlm.precision}', flush=True)
                rows,loss = measure(vlm, images, pool, C, o.repeats, reference, o.clock, o.threads)
                if reference is None: reference = loss
                ledger.append('step_time.csv', rows, KEYS)
