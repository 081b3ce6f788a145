"""How well a GPU is used, into results/gpu.csv: random-weight ViT-B/32, images from the uint8 cache, prompts in both towers.

    python benchmarks/gpu.py [--device cuda] [--precision bf16] [--compile] [--classes 10] [--images 4096]

encode: images/s from the cache through `encode_images`, beside the same tower on a batch that lies on the device already (`bare`); their ratio is what reading costs.
train: images/s of the SSL step of dial 'maple' (batch 32 of each kind, four kinds), and the minutes of 2,500 steps, the length of a run on EuroSAT.
share_of_peak: floating-point operations of a step's matrix products, counted by PyTorch's profiler, against the device's dense bf16 peak; empty where that is not known here.
It runs on a CPU too, which is how it is tested; give it few images there (--images 128 --steps 2).
"""
import argparse, sys, tempfile, time
from pathlib import Path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import torch
from torch.profiler import ProfilerActivity, profile
import ledger
from pla_nb.backbones import OpenClip
from pla_nb.pixels import pixels
from step_time import LOOSE, B, ours, setting, step, write_photos

PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L40S': 362e12, 'L4': 121e12} # dense bf16, FLOP/s, of the makers' data sheets
KEYS = ['what','device','precision','compile','classes']

def wait(device):
    if device.type=='cuda': torch.cuda.synchronize(device)

def per_second(f, n, device, rounds):
    "The best of `rounds`: n things are done by each call of f"
    f(); wait(device) # what only the first call needs
    times = []
    for _ in range(rounds):
        start = time.perf_counter(); f(); wait(device)
        times.append(time.perf_counter()-start)
    return n/min(times)

def encode_rows(vlm, pool, n, batch):
    "Encoding from the cache, and the bare tower"
    idx = torch.arange(n)%len(pool)
    views = lambda i: vlm.preprocess.normalize(pool.squares(i, device=vlm.device))
    ready = views(idx[:batch])
    bare = per_second(lambda: [vlm.encode_images(ready) for _ in range(n//batch)], n//batch*batch, vlm.device, 3)
    cached = per_second(lambda: [vlm.encode_images(views(i)) for i in idx.split(batch)[:n//batch]], n//batch*batch, vlm.device, 3)
    yield dict(what='encode, bare tower', per_second=bare)
    yield dict(what='encode, from the cache', per_second=cached, ratio=cached/bare)

def train_rows(vlm, pool, classes, steps, compiled):
    "Steps of dial 'maple'"
    s = setting(vlm, pool, classes)
    if compiled: s.ours._images = torch.compile(s.ours.prompts.images)
    run = lambda: [step(s, ours) for _ in range(steps)]
    rate = per_second(run, steps, vlm.device, 2)
    flop = operations(s)
    peak = next((v for k,v in PEAK.items() if k in device_name(vlm)), None)
    yield dict(what='train, maple, SSL', per_second=rate*4*B, minutes_2500_steps=2500/rate/60, flop_a_step=float(flop), share_of_peak=flop*rate/peak if peak else None)

def operations(s):
    "Floating-point operations of the matrix products of a step, not compiled; attention itself, a few per cent, is not counted"
    s.ours._images = s.ours.prompts.images
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as p: step(s, ours)
    return sum(o.flops for o in p.key_averages())

def device_name(vlm): return ledger.machine() if vlm.device.type=='cpu' else torch.cuda.get_device_name(vlm.device)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default=None); p.add_argument('--precision', default='auto'); p.add_argument('--compile', action='store_true')
    p.add_argument('--model', default='ViT-B-32-quickgelu'); p.add_argument('--classes', type=int, default=10)
    p.add_argument('--images', type=int, default=4096); p.add_argument('--batch', type=int, default=256); p.add_argument('--steps', type=int, default=20)
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        images = write_photos(Path(d))
        vlm = OpenClip(o.model, False, device=o.device, precision=o.precision)
        pool = pixels(images, vlm.preprocess, cache=Path(d)/'cache', loose=LOOSE, progress=False)
        for r in (*encode_rows(vlm, pool, o.images, min(o.batch, o.images)), *train_rows(vlm, pool, o.classes, o.steps, o.compile)):
            row = dict(device=device_name(vlm), precision=vlm.precision, compile=o.compile, classes=o.classes) | r
            print(row, flush=True)
            ledger.append('gpu.csv', [row], KEYS)
