"Speed of choosing pseudolabels, into results/speed.csv: the fill rule, balancing, and the mixture."
import argparse, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).parent))
import ledger
from pla_nb.pseudolabels import centered_scores, mixture, select_topk, sinkhorn

def lopsided(n, c, seed=0): # (n,c) probabilities with favourites among the classes
    g = torch.Generator().manual_seed(seed)
    return (2*torch.randn(n, c, generator=g) + 2*torch.randn(c, generator=g)).softmax(1)

def planted(n, c, d, seed=0): # text scores (n,c) and features (n,d) of c noisy groups
    g = torch.Generator().manual_seed(seed)
    centre, y = F.normalize(torch.randn(c, d, generator=g), dim=1), torch.randint(c, (n,), generator=g)
    U = F.normalize(centre[y] + torch.randn(n, d, generator=g)/d**.5, dim=1)
    return centered_scores(U, centre + torch.randn(c, d, generator=g)/d**.5), U

def measure(what, f, n, c, d='', repeats=5):
    "The best of some repeats, as others may use the machine"
    def once():
        start = time.perf_counter()
        f()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter()-start
    ledger.speed(what, n, min(once() for _ in range(repeats)), d=d, c=c, device=None if DEVICE=='cpu' else torch.cuda.get_device_name())

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=100_000, help='images')
    p.add_argument('--c', type=int, default=100, help='classes')
    p.add_argument('--d', type=int, default=256, help='dimensions of the vision features')
    p.add_argument('--device', default='cpu')
    # On a shared machine a second thread waits for the first: nine times slower was measured.
    p.add_argument('--threads', type=int, default=1)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    DEVICE = o.device
    P = lopsided(o.n, o.c).to(DEVICE)
    for k in (16, o.n//o.c): measure(f'select_topk k={k}', lambda: select_topk(P, k), o.n, o.c)
    L = P.log()
    measure('sinkhorn', lambda: sinkhorn(L), o.n, o.c)
    for n in (5_000, o.n):
        z, U = (t.to(DEVICE) for t in planted(n, o.c, o.d))
        measure('mixture', lambda: mixture(z, U), n, o.c, o.d, repeats=2)
