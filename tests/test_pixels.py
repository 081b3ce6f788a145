"Decoding once into files: odd images, damage, kills, full disks; boxes and views against torchvision and PIL."
import errno, json, os, shutil, signal, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv
from pla_nb import pixels as room
from pla_nb.backbones import Preprocess
from pla_nb.data import ArrayImages, FileImages, Task, UnreadableImage
from pla_nb.features import Crops
from pla_nb.pixels import pixels, random_boxes, shorten, upscale

S = Preprocess(32)
gen = lambda seed=0: torch.Generator().manual_seed(seed)

def noise(w, h, seed=0, mode='RGB'):
    "Smooth noise: its resized versions differ from each other"
    a = np.random.default_rng(seed).integers(0, 256, (max(1, h//5)+1, max(1, w//5)+1, 4), dtype=np.uint8)
    return Image.fromarray(a, 'RGBA').resize((w,h), Image.Resampling.BILINEAR).convert(mode)

def write_images(root, n, start=0, size=(70,50)):
    "n PNGs, last changed long ago"
    root.mkdir(parents=True, exist_ok=True)
    paths = [root/f'bild {i:03d} é.png' for i in range(start, start+n)]
    for i,p in enumerate(paths):
        noise(*size, seed=start+i).save(p)
        os.utime(p, (1.6e9,1.6e9))
    return paths

def odd_images(root):
    "One file of each kind that has made trouble somewhere"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6 # the camera lay on its side
    noise(80, 40).save(root/'turned.jpg', exif=exif)
    for mode in ('L','LA','RGBA','P','1'): noise(60, 47, 1, mode if mode not in 'P1' else 'RGB').convert(mode).save(root/f'{mode}.png')
    noise(90, 50, 2).convert('CMYK').save(root/'cmyk.jpg')
    Image.fromarray(np.arange(60*40, dtype=np.uint16).reshape(40,60)*20).save(root/'wide16.png')
    for w,h in ((1,1),(31,32),(32,32),(33,32),(3,400),(400,3),(28,28)): noise(w, h, 3).save(root/f'{w}x{h}.png')
    noise(700, 560, 4).save(root/'large.jpg', quality=90) # decoded at a fraction of its size
    return sorted(root.iterdir())

def make(source, cache=False, **kw): return pixels(source, kw.pop('preprocess', S), cache=cache, progress=False, **kw)

def direct(images, preprocess=S): return torch.stack([Crops(images, [i], preprocess)[0][1] for i in range(len(images))])

@pytest.fixture
def loads(monkeypatch):
    "Names of the files decoded"
    seen,load = [],FileImages.load
    monkeypatch.setattr(FileImages, 'load', lambda self, i, *a, **kw: (seen.append(self.name(i)), load(self, i, *a, **kw))[1])
    return seen

def chunks(cache): return sorted(Path(cache).rglob('chunk-*.safetensors'))

# squares

@pytest.mark.parametrize('preprocess', [S, Preprocess(32, resize='longest'), Preprocess(32, resize='squash', interpolation='bilinear'), Preprocess(24)], ids=str)
@pytest.mark.parametrize('loose', [None, 40])
def test_squares_are_what_features_encode(tmp_path, preprocess, loose):
    images = FileImages(odd_images(tmp_path/'in'))
    p = make(images, tmp_path/'cache', preprocess=preprocess, loose=loose)
    order = torch.randperm(len(images), generator=gen())
    assert torch.equal(p.squares(order), direct(images, preprocess)[order])

def test_squares_with_a_real_side(tmp_path):
    big = Preprocess(224)
    noise(1000, 900, 5).save(tmp_path/'a.jpg'); noise(64, 64, 6).save(tmp_path/'b.png')
    images = FileImages([tmp_path/'a.jpg', tmp_path/'b.png'])
    assert torch.equal(make(images, preprocess=big, loose=256).squares([0,1]), direct(images, big))

def test_workers_do_not_matter(tmp_path):
    images = FileImages(write_images(tmp_path/'in', 9)+odd_images(tmp_path/'odd'))
    a,b = make(images, workers=0, loose=40),make(images, workers=2, loose=40)
    n = range(len(images))
    assert torch.equal(a.squares(n), b.squares(n)) and torch.equal(a.strong(n, gen()), b.strong(n, gen()))

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 90), size=st.integers(1, 64), kernel=st.sampled_from(['bicubic','bilinear']), seed=st.integers(0, 99), extreme=st.booleans())
def test_upscale_is_pil_to_the_bit(n, size, kernel, seed, extreme):
    a = np.random.default_rng(seed).integers(0, 256, (n,n,3), dtype=np.uint8)
    if extreme: a = (a>127).astype(np.uint8)*255 # overshoots on both sides
    want = np.array(Image.fromarray(a).resize((size,size), Image.Resampling[kernel.upper()]))
    got = upscale(torch.from_numpy(a).permute(2,0,1)[None], size, kernel)[0].permute(1,2,0).numpy()
    assert np.array_equal(got, want)

@pytest.mark.parametrize('preprocess', [S, Preprocess(32, resize='squash', interpolation='bilinear')], ids=str)
def test_small_images_on_another_device(tmp_path, monkeypatch, preprocess):
    "The arithmetic of other devices, on the CPU: several sizes, also some that are not square"
    sizes = ((20,20),(28,28),(20,20),(40,40),(9,30),(28,28))
    for k,(w,h) in enumerate(sizes): noise(w, h, k).save(tmp_path/f'{k}.png')
    images = FileImages([tmp_path/f'{k}.png' for k in range(len(sizes))])
    monkeypatch.setattr(room, '_at_once', lambda device: True)
    assert torch.equal(make(images, preprocess=preprocess).squares([5,0,4,2,3,1]), direct(images, preprocess)[[5,0,4,2,3,1]])

def test_long_images_are_not_resized_at_each_visit():
    for size in ((3,400),(400,3)): assert room.pack(Image.new('RGB', size), S)[1].tolist()==[0,0,32,32]

def test_mixed_sizes_come_back_in_order(tmp_path):
    images = [noise(n, n, k) for k,n in enumerate((20,28,50,20,9))]
    for k,o in enumerate(images): o.save(tmp_path/f'{k}.png')
    p = make(FileImages([tmp_path/f'{k}.png' for k in range(5)]))
    assert torch.equal(p.squares([4,0,2,3,1,0]), torch.stack([S.crop(images[k]) for k in (4,0,2,3,1,0)]))

def test_nothing_asked_for(tmp_path):
    "As happens to a process that gets no part of a batch"
    p = make(FileImages(write_images(tmp_path/'in', 2)))
    assert p.squares([]).shape==p.strong([], gen()).shape==room._views_at_once([], torch.zeros(0, dtype=torch.bool), 32, 'cpu').shape==(0,3,32,32)

def test_small_images_stay_small(tmp_path):
    write_images(tmp_path/'in', 50, size=(16,16))
    make(FileImages(sorted((tmp_path/'in').iterdir())), tmp_path/'cache', preprocess=Preprocess(224), loose=256)
    used = sum(o.stat().st_size for o in chunks(tmp_path/'cache'))
    assert 50*16*16*3<used<50*16*16*3+10_000

def test_bytes_are_mapped_not_read(tmp_path):
    paths = write_images(tmp_path/'in', 3)
    p = make(FileImages(paths), tmp_path/'cache')
    if os.path.exists('/proc/self/maps'): assert str(chunks(tmp_path/'cache')[0]) in Path('/proc/self/maps').read_text()
    before = chunks(tmp_path/'cache')[0].read_bytes()
    p.blocks[0].zero_() # a private copy: the file stays
    assert chunks(tmp_path/'cache')[0].read_bytes()==before

@settings(max_examples=60, deadline=None)
@given(w=st.integers(1, 700), h=st.integers(1, 700), side=st.integers(1, 300))
def test_shorten(w, h, side):
    im = shorten(Image.new('RGB', (w,h)), side)
    assert min(im.size)==min(w, h, side) and (min(w, h)>side or im.size==(w,h))
    if min(w, h)>side: assert max(im.size)==pytest.approx(max(w, h)*side/min(w, h), abs=.51)

# the cache

def test_second_call_decodes_nothing(tmp_path, loads):
    images = FileImages(write_images(tmp_path/'in', 6))
    a = make(images, tmp_path/'cache', loose=40)
    assert len(loads)==6
    b = make(images, tmp_path/'cache', loose=40)
    assert len(loads)==6 and torch.equal(a.squares(range(6)), b.squares(range(6))) and torch.equal(a.strong([3,1], gen()), b.strong([3,1], gen()))

def test_moved_copied_and_new_images(tmp_path, loads):
    paths = write_images(tmp_path/'in', 4)
    make(FileImages(paths), tmp_path/'cache')
    moved = [p.rename(tmp_path/f'{i}.png') for i,p in enumerate(paths)]
    moved += [Path(shutil.copy(moved[0], tmp_path/'copy.png')), *write_images(tmp_path/'in', 1, start=9)]
    loads.clear()
    p = make(FileImages(moved), tmp_path/'cache')
    assert len(loads)==1 and torch.equal(p.squares([0,4])[0], p.squares([4,0])[0])
    assert torch.equal(p.squares(range(6)), direct(FileImages(moved)))

def test_another_size_has_its_own_files(tmp_path, loads):
    images = FileImages(write_images(tmp_path/'in', 2))
    for kw in (dict(), dict(loose=40), dict(loose=41), dict(preprocess=Preprocess(24)), dict(preprocess=Preprocess(32, resize='squash'))): make(images, tmp_path/'cache', **kw)
    assert len(loads)==10

def test_normalisation_does_not_decode_again(tmp_path, loads):
    "Only what changes the bytes belongs to the key"
    images = FileImages(write_images(tmp_path/'in', 2))
    for mean in ((.5,.5,.5),(.4,.4,.4)): make(images, tmp_path/'cache', preprocess=Preprocess(32, mean=mean))
    assert len(loads)==2

def damage_end(path): path.write_bytes(path.read_bytes()[:-5])
def damage_start(path): path.write_bytes(b'\xff'*8+path.read_bytes()[8:])
def damage_table(path):
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], 'little')
    start = json.loads(data[8:8+n])['table']['data_offsets'][0]
    data[8+n+start+8] ^= 1 # where the first image for views begins
    path.write_bytes(data)
def damage_all(path): path.write_bytes(b'')
def damage_foreign(path): path.write_bytes(b'GIF89a'+path.read_bytes())

@pytest.mark.parametrize('harm', [damage_end, damage_start, damage_table, damage_all, damage_foreign], ids=lambda f: f.__name__)
def test_damaged_file_is_set_aside_and_made_again(tmp_path, monkeypatch, loads, harm):
    monkeypatch.setattr(room.decode_into, '__defaults__', tuple(3 if o==256 else o for o in room.decode_into.__defaults__))
    images = FileImages(write_images(tmp_path/'in', 64))
    whole = make(images, tmp_path/'cache').squares(range(64))
    assert len(chunks(tmp_path/'cache'))==2
    harm(chunks(tmp_path/'cache')[1])
    loads.clear()
    with pytest.warns(UserWarning, match=r'cannot be used .*\.bad'): again = make(images, tmp_path/'cache')
    assert len(loads)==32 and torch.equal(again.squares(range(64)), whole)
    assert len(list((tmp_path/'cache').rglob('*.bad')))==1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make(images, tmp_path/'cache')
    assert len(loads)==32

CHILD = '''
import sys
sys.path.insert(0, {repo!r})
from functools import partial
from pathlib import Path
from pla_nb import pixels as room
from pla_nb.backbones import Preprocess
from pla_nb.data import FileImages
plain = room.PixelCache.add
def announce(self, keys, tensors):
    plain(self, keys, tensors)
    print(len(keys), flush=True)
    sys.stdin.readline() # waits here: the parent kills or goes on
room.PixelCache.add = announce
room.decode_into = partial(room.decode_into, chunk=4, batch_size=2)
room.pixels(FileImages(sorted(Path(sys.argv[1]).iterdir())), Preprocess(32), sys.argv[2], loose=40, workers=0, progress=False)
'''

def test_killed_build_goes_on(tmp_path, loads):
    paths = write_images(tmp_path/'in', 15)
    child = subprocess.Popen([sys.executable, '-c', CHILD.format(repo=str(Path(__file__).parents[1])), str(tmp_path/'in'), str(tmp_path/'cache')],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        done = int(child.stdout.readline())
        print(file=child.stdin, flush=True)
        done += int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert child.returncode==-signal.SIGKILL and done==8
    (chunks(tmp_path/'cache')[0].parent/'.chunk-left.safetensors').write_bytes(b'half') # what a kill while writing leaves
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        p = make(FileImages(paths), tmp_path/'cache', loose=40)
    assert len(loads)==7 and torch.equal(p.squares(range(15)), direct(FileImages(paths)))

def test_interrupt_loses_nothing(tmp_path, monkeypatch, loads):
    images = FileImages(write_images(tmp_path/'in', 40))
    plain = room._collate
    def stops(rows):
        if len(loads)>32: raise KeyboardInterrupt
        return plain(rows)
    monkeypatch.setattr(room, '_collate', stops)
    with pytest.raises(KeyboardInterrupt): make(images, tmp_path/'cache')
    monkeypatch.setattr(room, '_collate', plain)
    loads.clear()
    make(images, tmp_path/'cache')
    assert len(loads)==8

def test_full_disk(tmp_path, loads):
    "A real refusal of the operating system: files may not grow beyond 100 kB"
    resource = pytest.importorskip('resource')
    images = FileImages(write_images(tmp_path/'in', 40))
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,hard))
    try:
        with pytest.raises(OSError, match='no space left.*0 are there.*0.01 MB.*cache=') as e: make(images, tmp_path/'cache', loose=40)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft,hard))
    assert e.value.errno==errno.EFBIG and not any(o.is_file() and 'pixels' in str(o.parent) for o in (tmp_path/'cache').rglob('*'))
    assert len(make(images, tmp_path/'cache', loose=40))==40

@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0, reason='root may write anywhere')
def test_no_right_to_write(tmp_path):
    (tmp_path/'cache').mkdir(mode=0o500)
    with pytest.raises(OSError, match='may write to'): make(FileImages(write_images(tmp_path/'in', 1)), tmp_path/'cache')

def test_unreadable_images_are_skipped_and_named(tmp_path):
    paths = write_images(tmp_path/'in', 4)
    paths[1].write_bytes(b'no image'); paths[3].unlink()
    task = Task.from_paths(paths, ['cat','dog'])
    with pytest.warns(UserWarning, match='2 of 4 images cannot be read.*bild 001'): p = make(task, tmp_path/'cache')
    assert len(p)==len(p.task)==2 and p.skipped==[task.images.name(1), task.images.name(3)] and 'skipped' in repr(p)
    assert torch.equal(p.squares([0,1]), direct(FileImages([paths[0],paths[2]])))
    with pytest.raises(UnreadableImage, match='bild 001'): make(task, tmp_path/'cache', strict=True)

def test_dead_worker(tmp_path, monkeypatch):
    main,load = os.getpid(),FileImages.load
    def killed(self, i, *a, **kw):
        if os.getpid()!=main: os._exit(1)
        return load(self, i, *a, **kw)
    monkeypatch.setattr(FileImages, 'load', killed)
    with pytest.warns(UserWarning, match='decoding process died'): p = make(FileImages(write_images(tmp_path/'in', 4)), workers=1)
    assert len(p)==4

def test_wrong_calls():
    images = ArrayImages(np.zeros((2,9,9), np.uint8))
    with pytest.raises(ValueError, match='loose from 32 to 128'): make(images, loose=20)
    with pytest.raises(ValueError, match='no images'): make(FileImages([]))
    with pytest.raises(ValueError, match='shares of the area'): make(images).strong([0], scale=(0, 2))
    with pytest.raises(IndexError): make(images).squares([2])

# views

sides = st.integers(1, 600)

@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=20), seed=st.integers(0, 999), low=st.floats(.01, 1), high=st.floats(.01, 1))
def test_boxes_lie_inside(sizes, seed, low, high):
    sizes,low,high = torch.tensor(sizes),*sorted((low,high))
    boxes,mirrored = random_boxes(sizes, gen(seed), (low,high))
    corner,hw = boxes[:,:2],boxes[:,2:]
    assert (corner>=0).all() and (hw>=1).all() and (corner+hw<=sizes).all() and mirrored.dtype==torch.bool

@settings(max_examples=40, deadline=None)
@given(h=st.integers(200, 500), aspect=st.floats(.8, 1.25), seed=st.integers(0, 999), low=st.floats(.05, .7), width=st.floats(0, .2))
def test_areas_and_aspects_are_within_the_limits(h, aspect, seed, low, width):
    "Of images whose aspect leaves room, so that the last resort is not needed; half a pixel of rounding on each side"
    w = round(h*aspect)
    hw = random_boxes(torch.tensor([[h,w]]*50), gen(seed), (low,low+width))[0][:,2:].double()
    area = lambda d: (hw+d).prod(1)/(h*w)
    assert (area(.5)>=low).all() and (area(-.5)<=low+width).all()
    assert ((hw[:,1]+.5)/(hw[:,0]-.5)>=3/4).all() and ((hw[:,1]-.5)/(hw[:,0]+.5)<=4/3).all()

def test_boxes_are_spread_as_torchvisions():
    "Same distribution of place, height and width, on an image where the last resort is sometimes needed"
    n,(h,w) = 3000,(100,260)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        want = torch.tensor([RandomResizedCrop.get_params(torch.empty(3, h, w), [.08,1.], [3/4,4/3]) for _ in range(n)])
    got = random_boxes(torch.tensor([[h,w]]*n), gen(4))[0]
    for k in range(4): assert ks_2samp(got[:,k], want[:,k]).pvalue>1e-3

@pytest.mark.parametrize('h,w', [(5,600),(600,5),(1,1),(100,1000)])
def test_last_resort_is_torchvisions(h, w):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = RandomResizedCrop.get_params(torch.empty(3, h, w), [.99,1.], [3/4,4/3])
    assert random_boxes(torch.tensor([[h,w]]), gen(), (.99,1.))[0].tolist()==[list(want)]

def test_every_image_takes_the_same_random_numbers():
    "What comes after does not depend on how many tries an image needed"
    rest = [(g := gen(), random_boxes(torch.tensor([s]*3), g), torch.rand(2, generator=g))[2] for s in ([300,300],[2,900])]
    assert torch.equal(*rest)

def test_views_are_parts_of_the_image(tmp_path):
    paths = write_images(tmp_path/'in', 3, size=(90,60))
    p = make(FileImages(paths), tmp_path/'cache', loose=40)
    idx = [2,0,1,0]
    v = p.strong(idx, gen(5))
    boxes,mirrored = random_boxes(torch.tensor([[40,60]]*4), gen(5))
    for k,i in enumerate(idx):
        im = torch.from_numpy(np.array(shorten(FileImages(paths)[i], 40))).permute(2,0,1)
        want = tv.resized_crop(im, *boxes[k].tolist(), [32,32], tv.InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(v[k], want.flip(-1) if mirrored[k] else want)
    assert v.shape==(4,3,32,32) and v.dtype==torch.uint8

def test_views_repeat_with_the_generator_only():
    p = make(ArrayImages(np.random.default_rng(0).integers(0, 256, (5,50,50,3), dtype=np.uint8)), loose=40)
    torch.manual_seed(0); a = p.strong(range(5), gen(1))
    torch.manual_seed(9); b = p.strong(range(5), gen(1))
    assert torch.equal(a, b) and not torch.equal(a, p.strong(range(5), gen(2)))
    g = gen(1)
    assert torch.equal(p.strong(range(5), g), a) and not torch.equal(p.strong(range(5), g), a)

def test_a_part_is_what_it_is_of_the_whole():
    p = make(ArrayImages(np.random.default_rng(0).integers(0, 256, (7,50,50,3), dtype=np.uint8)), loose=40)
    g,h = gen(1),gen(1)
    for part in (slice(0, None, 2), slice(1, None, 2), slice(7, None)): assert torch.equal(p.strong(range(7), gen(1), part=part), p.strong(range(7), gen(1))[part])
    p.strong(range(7), g, part=slice(3)); p.strong(range(7), h)
    assert torch.equal(torch.rand(3, generator=g), torch.rand(3, generator=h)) # as many random numbers

def test_flip_one_is_the_released_codes():
    p = make(ArrayImages(np.random.default_rng(0).integers(0, 256, (6,50,50,3), dtype=np.uint8)))
    never,always = (p.strong(range(6), gen(1), flip=f) for f in (0.,1.))
    assert torch.equal(never.flip(-1), always)
    some = p.strong([0]*40, gen(2))
    pairs = [(a,b) for a,b in zip(some, p.strong([0]*40, gen(2), flip=0.))]
    assert 10<sum(not torch.equal(a, b) for a,b in pairs)<30

def test_without_loose_views_are_cut_from_the_square(tmp_path):
    noise(90, 60).save(tmp_path/'a.png')
    p = make(FileImages([tmp_path/'a.png']))
    whole = p.strong([0], gen(), scale=(1.,1.), flip=0.)
    assert p.table[0,3:].tolist()==[32,32] and whole.shape==(1,3,32,32)
    want = tv.resized_crop(p.squares([0])[0], *random_boxes(torch.tensor([[32,32]]), gen(), (1.,1.))[0][0].tolist(), [32,32], tv.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(whole[0], want)

@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=5), size=st.integers(1, 48), seed=st.integers(0, 99))
def test_both_ways_of_resizing_agree(sizes, size, seed):
    "All at once, as on a GPU, and one by one, as on the CPU, which rounds between its two passes: two levels of 255 apart at most, and seldom at all"
    g = gen(seed)
    parts = [torch.randint(0, 256, (h,w,3), generator=g, dtype=torch.uint8) for h,w in sizes]
    mirrored = torch.rand(len(parts), generator=g)<.5
    a,b = (f(parts, mirrored, size, torch.device('cpu')) for f in (room._views_one_by_one, room._views_at_once))
    assert (a.int()-b.int()).abs().max()<=2
    if a.numel()>2000: assert (a!=b).float().mean()<.05
