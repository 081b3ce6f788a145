"Speed of mismatch detection, into results/speed.csv: each restart in a process of its own, so that peak memory is its own."
import argparse, subprocess, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).parent))
import ledger
from pla_nb.align import detect_mismatch

def planted(n, d, c, noise, device, seed=0):
    "Noisy groups of images and names close to them; one name points elsewhere"
    g = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(c, d, generator=g), dim=1)
    V = torch.randn(n, d, generator=g).mul_(noise).add_(centers[torch.randint(c, (n,), generator=g)])
    T = centers+.02*torch.randn(c, d, generator=g)
    T[0] = -T[0]
    return F.normalize(V, dim=1).to(device), F.normalize(T, dim=1).to(device)

def measure(restart, variant, n, d, c, t, noise, device):
    "Seconds of one detection, after a small one that warms the libraries up"
    V,T = planted(n, d, c, noise, device)
    detect_mismatch(V[:10*c], T, t=t, restart=restart, variant=variant)
    if device!='cpu': torch.cuda.synchronize()
    start = time.perf_counter()
    detect_mismatch(V, T, t=t, restart=restart, variant=variant)
    what = f'mismatch {restart}' if variant=='paper' else f'mismatch {restart} {variant}'
    ledger.speed(what, n, time.perf_counter()-start, d, c, ledger.machine() if device=='cpu' else torch.cuda.get_device_name())

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    for k,v in dict(n=31_500, d=512, c=45, t=5).items(): p.add_argument(f'--{k}', type=int, default=v)
    p.add_argument('--noise', type=float, default=.08, help='of each feature; the centers have length one')
    p.add_argument('--device', default='cpu')
    p.add_argument('--restart', help='warm or cold, measured here; both in turn by default')
    p.add_argument('--variant', default='paper', help='paper or released')
    o = p.parse_args()
    torch.set_flush_denormal(True)
    if o.restart: measure(o.restart, o.variant, o.n, o.d, o.c, o.t, o.noise, o.device)
    else:
        for restart in ('warm','cold'):
            for variant in ('paper','released'):
                subprocess.run([sys.executable, __file__, *sys.argv[1:], '--restart', restart, '--variant', variant], check=True)
