"""Make pla_nb/samples/fashion_mnist.npz from the full Fashion-MNIST (Debian: apt install dataset-fashion-mnist).

5,000 images of the training part and 1,000 of the test part, drawn uniformly (not stratified) with a fixed seed. The bytes do not
depend on the day or the machine, so running it again leaves git clean."""
import io, sys, zipfile
from pathlib import Path
import numpy as np
from pla_nb.data import fashion_mnist

SEED = 2017
SIZES = {'pool':5000, 'test':1000}

def sample(root=None):
    "The arrays of the sample, by name"
    rng, arrays = np.random.default_rng(SEED), {}
    for split,n in SIZES.items():
        task = fashion_mnist(split, full=True, root=root)
        idx = rng.choice(len(task), n, replace=False)
        arrays |= {f'{split}_images':task.images.array[idx], f'{split}_labels':task.targets[idx].astype(np.uint8)}
    return arrays

def write_npz(path, arrays):
    "Like np.savez_compressed at the highest level, with a fixed date in every entry"
    with zipfile.ZipFile(path, 'w') as z:
        for k,a in arrays.items():
            buf = io.BytesIO()
            np.lib.format.write_array(buf, a, allow_pickle=False)
            z.writestr(zipfile.ZipInfo(f'{k}.npy', (1980,1,1,0,0,0)), buf.getvalue(), zipfile.ZIP_DEFLATED, 9)

if __name__=='__main__':
    path = Path(__file__).parent.parent/'pla_nb'/'samples'/'fashion_mnist.npz'
    path.parent.mkdir(exist_ok=True)
    write_npz(path, sample(sys.argv[1] if len(sys.argv)>1 else None))
    print(path, path.stat().st_size)
