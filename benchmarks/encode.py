"Speed of encoding, into results/speed.csv: the starter's image tower in each precision, and a second `features` call."
import argparse, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from PIL import Image
sys.path.insert(0, str(Path(__file__).parent))
import ledger
from pla_nb.backbones import Starter
from pla_nb.data import FileImages, Task, fashion_mnist
from pla_nb.features import features

def tower(precision, n, device):
    "Seconds to encode n prepared images; the best of three, as others may use the machine"
    vlm = Starter(device=device, precision=precision)
    batch = torch.rand(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    vlm.encode_pair(batch)
    def once():
        start = time.perf_counter()
        for _ in range(n//64): vlm.encode_pair(batch)
        return time.perf_counter()-start
    ledger.speed(f'encode starter {precision}', n//64*64, min(once() for _ in range(3)), d=vlm.dim, device=_name(vlm))

def fidelity(n, device):
    "Mean and least cosine of bf16 and fp32 features of real images, into encode.csv"
    task = fashion_mnist('test').subset(range(n))
    a,b = (features(Starter(device=device, precision=p), task, cache=False, progress=False) for p in ('fp32','bf16'))
    T = Starter(device=device).encode_classes(task.classes).to(a.V.device)
    rows = [dict(what=f'cosine of {k}', n=n, mean=float(c.mean()), least=float(c.min())) for k,c in (('V',(a.V*b.V).sum(1)),('U',(a.U*b.U).sum(1)))]
    same = ((a.V@T.T).argmax(1)==(b.V@T.T).argmax(1)).float().mean()
    ledger.append('encode.csv', [*rows, dict(what='same zero-shot class', n=n, mean=float(same))], ['what','n'])

def second_call(n, device):
    "Seconds of a second `features` call on n unchanged files"
    pool,vlm = fashion_mnist('pool'),Starter(device=device)
    with tempfile.TemporaryDirectory() as d:
        paths = [Path(d)/'in'/f'{i}.png' for i in range(n)]
        paths[0].parent.mkdir()
        for i,p in enumerate(paths): Image.fromarray(pool.images.array[i%len(pool)]).save(p)
        task = Task(FileImages(paths), pool.classes)
        for what in ('features first call','features second call'):
            start = time.perf_counter()
            out = features(vlm, task, cache=Path(d)/'cache', progress=what.endswith('first call'))
            ledger.speed(what, n, time.perf_counter()-start, d=out.V.shape[1], device=_name(vlm))

def _name(vlm): return ledger.machine() if vlm.device.type=='cpu' else torch.cuda.get_device_name()

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=5000, help='files of the second-call measurement')
    p.add_argument('--device', default=None)
    o = p.parse_args()
    for precision in ('fp32','bf16'): tower(precision, 256, o.device)
    fidelity(200, o.device)
    second_call(o.n, o.device)
