"The feature pass on real files: interruptions, damage, changes; with a random-weight open_clip model."
import json, os, shutil, signal, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors import safe_open
from pla_nb import features as room
from pla_nb.backbones import OpenClip
from pla_nb.data import ArrayImages, FileImages, Task, UnreadableImage
from pla_nb.features import ChunkCache, Features, crop_flip, features, image_keys

TINY = dict(embed_dim=16, vision_cfg=dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16),
            text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1))
def tiny(seed=0): return OpenClip('ViT-S-32', False, device='cpu', seed=seed, **TINY)

@pytest.fixture(scope='module')
def vlm(): return tiny()

def write_images(root, n, start=0, old=True):
    "n small PNGs; `old` ones were last changed a day ago"
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(start)
    paths = [root/f'bild {i:03d} é.png' for i in range(start, start+n)]
    for p in paths:
        Image.fromarray(rng.integers(0, 256, (24,20,3), dtype=np.uint8)).save(p)
        if old: os.utime(p, (1.6e9,1.6e9))
    return paths

def task_of(paths): return Task.from_paths(paths, ['cat','dog'])

class Counter:
    "The model, counting the images that it encodes"
    def __init__(self, vlm): self.vlm,self.n = vlm,0
    def __getattr__(self, name): return getattr(self.vlm, name)
    def encode_pair(self, batch):
        self.n += len(batch)
        return self.vlm.encode_pair(batch)

def run(vlm, task, cache, **kw):
    "Features and the number of images encoded for them"
    c = Counter(vlm)
    return features(c, task, cache=cache, progress=False, **kw), c.n

def chunks(cache): return sorted(Path(cache).rglob('chunk-*.safetensors'))

# results

def test_rows_are_the_models(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 5))
    f,_ = run(vlm, task, tmp_path/'cache')
    V,U = vlm.encode_pair(torch.stack([vlm.preprocess(task.images[i]) for i in range(5)]))
    torch.testing.assert_close(f.V, V, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(f.U, U, atol=1e-5, rtol=1e-5)
    assert (len(f), f.V.dtype, f.vlm_key, f.skipped)==(5, torch.float32, vlm.key, [])

def test_workers_and_batches_do_not_matter(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 7))
    a,_ = run(vlm, task, False, workers=0)
    b,_ = run(vlm, task, False, workers=2, batch_size=2)
    torch.testing.assert_close(a.V, b.V, atol=1e-3, rtol=1e-3)

def test_features_carry_gradients_nowhere_but_can_be_trained_on(vlm):
    f,_ = run(vlm, Task(ArrayImages(np.zeros((2,9,9), np.uint8)), ['a','b']), False)
    w = torch.zeros(f.V.shape[1], 2, requires_grad=True)
    (f.V@w).sum().backward()
    assert not f.V.requires_grad and w.grad is not None

def test_subset_and_to(vlm):
    f,_ = run(vlm, Task(ArrayImages(np.arange(6*64, dtype=np.uint8).reshape(6,8,8)), ['a','b'], np.array([0,1,0,1,0,1])), False)
    s = f.subset([4,1]).to('cpu')
    assert torch.equal(s.V, f.V[[4,1]]) and s.task.targets.tolist()==[0,1] and len(s)==2
    assert torch.equal(f.subset(np.array([True]+[False]*5)).U, f.U[:1])

def test_model_without_vision_features(vlm, tmp_path):
    class NoU(Counter):
        image_key = 'other'
        def encode_pair(self, batch): return self.vlm.encode_pair(batch)[0], None
    task = Task(ArrayImages(np.zeros((3,9,9), np.uint8)), ['a','b'])
    for _ in range(2): assert features(NoU(vlm), task, cache=tmp_path, progress=False).U is None

def test_empty_task(vlm):
    with pytest.raises(ValueError, match='no images'): features(vlm, FileImages([]), cache=False)

# the cache

def test_second_call_encodes_nothing(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 6))
    a,n = run(vlm, task, tmp_path/'cache')
    b,m = run(vlm, task, tmp_path/'cache')
    assert (n,m)==(6,0) and torch.equal(a.V, b.V) and torch.equal(a.U, b.U)

def test_second_call_reads_no_image(vlm, tmp_path, monkeypatch):
    task = task_of(write_images(tmp_path/'in', 6))
    run(vlm, task, tmp_path/'cache')
    def refuse(self, *a, **kw): raise AssertionError('an unchanged file was opened')
    monkeypatch.setattr(FileImages, 'key', refuse)
    monkeypatch.setattr(FileImages, 'load', refuse)
    run(vlm, task, tmp_path/'cache')

def test_only_new_and_changed_images_are_encoded(vlm, tmp_path):
    paths = write_images(tmp_path/'in', 6)
    run(vlm, task_of(paths), tmp_path/'cache')
    paths += write_images(tmp_path/'in', 1, start=6)
    assert run(vlm, task_of(paths), tmp_path/'cache')[1]==1
    write_images(tmp_path/'new', 1, start=50, old=False)[0].replace(paths[2])
    f,n = run(vlm, task_of(paths), tmp_path/'cache')
    fresh,_ = run(vlm, task_of(paths), False)
    assert n==1
    torch.testing.assert_close(f.V, fresh.V, atol=1e-3, rtol=1e-3)

def test_moved_and_renamed_images_are_known(vlm, tmp_path):
    paths = write_images(tmp_path/'in', 4)
    run(vlm, task_of(paths), tmp_path/'cache')
    moved = [p.rename(tmp_path/f'{i}.png') for i,p in enumerate(paths)]
    assert run(vlm, task_of(moved), tmp_path/'cache')[1]==0

def test_copies_are_encoded_once(vlm, tmp_path):
    paths = write_images(tmp_path/'in', 3)
    paths.append(Path(shutil.copy(paths[0], tmp_path/'in'/'copy.png')))
    f,n = run(vlm, task_of(paths), tmp_path/'cache')
    assert n==3 and torch.equal(f.V[0], f.V[3])

def test_same_size_and_quick_edit_is_seen(vlm, tmp_path):
    "A file changed a moment ago is not trusted by its time stamp"
    p = tmp_path/'a.bmp'
    Image.new('RGB', (9,9), 'red').save(p)
    stamp = os.stat(p).st_mtime_ns
    before = image_keys(FileImages([p]), tmp_path/'cache')
    Image.new('RGB', (9,9), 'blue').save(p)
    os.utime(p, ns=(stamp,stamp))
    assert image_keys(FileImages([p]), tmp_path/'cache')!=before

def test_another_model_or_precision_has_its_own_features(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 3))
    run(vlm, task, tmp_path/'cache')
    assert run(tiny(seed=1), task, tmp_path/'cache')[1]==3
    other = Counter(vlm)
    other.precision = 'fp16'
    assert run(other, task, tmp_path/'cache')[1]==3

@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
def test_gather_returns_what_was_added(sizes, data):
    store,rows = ChunkCache(None, 'm'),{}
    for c,n in enumerate(sizes):
        keys,x = [f'{c}-{i}' for i in range(n)],torch.rand(n, 3)
        store.add(keys, dict(V=x))
        rows |= dict(zip(keys, x))
    want = data.draw(st.lists(st.sampled_from(sorted(rows)), min_size=1, max_size=12))
    assert torch.equal(store.gather(want, 'V'), torch.stack([rows[k] for k in want]))

# interruptions

CHILD = '''
import sys, torch
sys.path[:0] = [{tests!r}, {repo!r}]
import test_features as t
from pla_nb import features as room
from functools import partial
add = room.ChunkCache.add
def announce(self, keys, tensors):
    add(self, keys, tensors)
    print(len(keys), flush=True)
    sys.stdin.readline() # waits here: the parent kills or goes on
room.ChunkCache.add = announce
room.encode = partial(room.encode, chunk=4)
room.features(t.tiny(), t.task_of(sorted(t.Path(sys.argv[1]).iterdir())), cache=sys.argv[2], batch_size=2, workers=0, progress=False)
'''

def test_killed_pass_goes_on(vlm, tmp_path):
    kill_after = int(np.random.default_rng().integers(1, 6)) # a random chunk: each must do
    paths = write_images(tmp_path/'in', 23)
    whole,_ = run(vlm, task_of(paths), False)
    here = Path(__file__)
    child = subprocess.Popen([sys.executable, '-c', CHILD.format(tests=str(here.parent), repo=str(here.parents[1])), str(tmp_path/'in'), str(tmp_path/'cache')],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        done = 0
        for i in range(kill_after):
            if i: print(file=child.stdin, flush=True)
            done += int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert child.returncode==-signal.SIGKILL and done==4*kill_after
    f,n = run(vlm, task_of(paths), tmp_path/'cache')
    assert n==23-done
    torch.testing.assert_close(f.V, whole.V, atol=1e-3, rtol=1e-3)
    assert run(vlm, task_of(paths), tmp_path/'cache')[1]==0

def test_interrupt_keeps_the_chunk_at_hand(vlm, tmp_path):
    class Stops(Counter):
        def encode_pair(self, batch):
            if self.n>=4: raise KeyboardInterrupt
            return super().encode_pair(batch)
    task = task_of(write_images(tmp_path/'in', 10))
    with pytest.raises(KeyboardInterrupt): features(Stops(vlm), task, cache=tmp_path/'cache', batch_size=2, progress=False)
    assert run(vlm, task, tmp_path/'cache')[1]==6

def test_half_written_file_is_invisible(vlm, tmp_path, monkeypatch):
    "A write that dies in the middle leaves no chunk under its final name"
    def dies(self, data):
        with open(self, 'wb') as f: f.write(data[:len(data)//2])
        raise OSError(28, 'No space left on device')
    task = task_of(write_images(tmp_path/'in', 3))
    monkeypatch.setattr(Path, 'write_bytes', dies)
    with pytest.warns(UserWarning, match='No space left'): f,_ = run(vlm, task, tmp_path/'cache')
    assert len(f)==3 and not chunks(tmp_path/'cache')

# damage

def damage(path, how):
    data = path.read_bytes()
    if how=='truncated': path.write_bytes(data[:len(data)*2//3])
    elif how=='empty': path.write_bytes(b'')
    elif how=='header': path.write_bytes(data[:4]+b'\xff'*16+data[20:])
    elif how=='flipped': path.write_bytes(data[:-9]+bytes([data[-9]^64])+data[-8:])
    elif how=='text': path.write_text('not a cache file')

@pytest.mark.parametrize('how', ['truncated','empty','header','flipped','text'])
def test_damaged_cache_is_noticed_and_rebuilt(vlm, tmp_path, how):
    task = task_of(write_images(tmp_path/'in', 5))
    a,_ = run(vlm, task, tmp_path/'cache')
    damage(chunks(tmp_path/'cache')[0], how)
    with pytest.warns(UserWarning, match='cannot be used'): b,n = run(vlm, task, tmp_path/'cache')
    assert n==5 and torch.equal(a.V, b.V)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert run(vlm, task, tmp_path/'cache')[1]==0

def test_foreign_cache_file_is_noticed(vlm, tmp_path):
    from safetensors.torch import save_file
    task,other = task_of(write_images(tmp_path/'in', 5)),tiny(seed=1)
    a,_ = run(vlm, task, tmp_path/'cache')
    run(other, task, tmp_path/'other')
    mine,theirs = chunks(tmp_path/'cache')[0],chunks(tmp_path/'other')[0]
    assert mine.name==theirs.name
    shutil.copy(theirs, mine)
    save_file(dict(V=torch.zeros(5,16)), mine.with_name('chunk-foreign.safetensors'))
    with pytest.warns(UserWarning) as w: b,n = run(vlm, task, tmp_path/'cache')
    text = ' '.join(str(o.message) for o in w)
    assert 'another model' in text and 'not written by this library' in text
    assert n==5 and torch.equal(a.V, b.V)

def test_reading_ends_when_all_is_found(vlm, tmp_path):
    "A file in a folder of many chunks: those behind its own are not looked at, so that damage there goes unnoticed"
    paths,cache = write_images(tmp_path/'in', 6),tmp_path/'cache'
    for p in paths: run(vlm, task_of([p]), cache)
    first,*others = chunks(cache)
    for o in others: o.write_bytes(b'damaged')
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        with safe_open(first, 'pt') as f: (key,),model = json.loads(f.metadata()['keys']),f.metadata()['model']
        store = ChunkCache(first.parent, model)
        store.read([key])
        assert key in store and not w and chunks(cache)==[first, *others]
        store.read([key])
        assert not w
        store.read(['unknown'])
        assert len(w)==5 and chunks(cache)==[first]

def test_chunk_that_cannot_be_opened_is_left(vlm, tmp_path):
    "As one that another user keeps to himself; no user, root included, can open this"
    paths,cache = write_images(tmp_path/'in', 4),tmp_path/'cache'
    run(vlm, task_of(paths[:3]), cache)
    mine, = chunks(cache)
    theirs = mine.with_name('chunk-0.safetensors')
    theirs.symlink_to(theirs.name)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        f,n = run(vlm, task_of(paths), cache)
    assert (len(f),n)==(4,1) and theirs.is_symlink()

def test_private_chunk_is_left(vlm, tmp_path):
    task,cache = task_of(write_images(tmp_path/'in', 3)),tmp_path/'cache'
    run(vlm, task, cache)
    chunk, = chunks(cache)
    chunk.chmod(0)
    if os.access(chunk, os.R_OK): pytest.skip('this user may read everything')
    assert run(vlm, task, cache)[1]==3 and not list(cache.rglob('*.bad'))

def test_too_many_open_files_are_no_damage(vlm, tmp_path):
    resource = pytest.importorskip('resource')
    task,cache = task_of(write_images(tmp_path/'in', 3)),tmp_path/'cache'
    run(vlm, task, cache)
    chunk, = chunks(cache)
    with safe_open(chunk, 'pt') as f: keys,model = json.loads(f.metadata()['keys']),f.metadata()['model']
    soft,hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store,held = ChunkCache(chunk.parent, model),[]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        with pytest.raises(OSError, match='Too many'):
            while True: held.append(open(os.devnull))
        held.pop().close() # one to list the folder
        store.read(keys)
    finally:
        for o in held: o.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert chunk.exists() and keys[0] not in store
    store.read(keys)
    assert keys[0] in store

@pytest.mark.parametrize('text', ['', '{', '[1]', '{"a": 3}', '{"a": [1, 2]}'])
def test_damaged_file_index(vlm, tmp_path, text):
    task = task_of(write_images(tmp_path/'in', 3))
    run(vlm, task, tmp_path/'cache')
    index, = (tmp_path/'cache').glob('files-*.json')
    index.write_text(text)
    assert run(vlm, task, tmp_path/'cache')[1]==0

def spoil(paths, rng):
    "Damage files in five ways; returns their names"
    for p,how in zip(paths, 'cut empty text gone folder'.split()*len(paths)):
        data = p.read_bytes()
        p.unlink()
        if how=='cut': p.write_bytes(data[:len(data)//2])
        elif how=='empty': p.write_bytes(b'')
        elif how=='text': p.write_text('no image')
        elif how=='folder': p.mkdir()
    return [p.name for p in paths]

@pytest.mark.parametrize('workers', [0,1])
def test_five_percent_damaged_files(vlm, tmp_path, workers):
    paths = write_images(tmp_path/'in', 100)
    whole,_ = run(vlm, task_of(paths), False)
    bad = sorted(np.random.default_rng(0).choice(100, 5, replace=False))
    names = spoil([paths[i] for i in bad], np.random.default_rng(1))
    with pytest.warns(UserWarning, match='5 of 100 images cannot be read') as w: f,n = run(vlm, task_of(paths), tmp_path/'cache', workers=workers)
    assert all(o in str(w[-1].message) for o in names) and sorted(f.skipped)==sorted(names)
    assert len(f)==len(f.task)==95 and n==95
    good = np.setdiff1d(np.arange(100), bad)
    torch.testing.assert_close(f.V, whole.V[good], atol=1e-3, rtol=1e-3)
    assert [f.task.images.path(i) for i in range(95)]==[paths[i] for i in good]
    with pytest.raises(UnreadableImage) as e: run(vlm, task_of(paths), tmp_path/'cache', strict=True)
    assert all(o in str(e.value) for o in names)

def test_mended_file_is_read_again(vlm, tmp_path):
    paths = write_images(tmp_path/'in', 4)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:40])
    with pytest.warns(UserWarning, match='cannot be read'): run(vlm, task_of(paths), tmp_path/'cache')
    paths[1].write_bytes(data)
    f,n = run(vlm, task_of(paths), tmp_path/'cache')
    assert (len(f),n)==(4,1)

def test_nothing_readable(vlm, tmp_path):
    (tmp_path/'a.png').write_text('x')
    with pytest.raises(UnreadableImage, match='1 of 1'): run(vlm, FileImages([tmp_path/'a.png']), False)

def test_unwritable_cache_loses_nothing(vlm, tmp_path):
    "A file where the folder should be: no user, root included, can write there"
    (tmp_path/'blocked').write_text('')
    task = task_of(write_images(tmp_path/'in', 3))
    with pytest.warns(UserWarning, match='kept in memory only') as w: f,n = run(vlm, task, tmp_path/'blocked'/'cache')
    assert len(f)==n==3 and len(w)==1

def test_read_only_cache_is_used(vlm, tmp_path):
    paths,cache = write_images(tmp_path/'in', 4),tmp_path/'cache'
    run(vlm, task_of(paths[:3]), cache)
    folders = [o for o in [cache, *cache.rglob('*')] if o.is_dir()]
    for o in folders: o.chmod(0o500)
    if os.access(cache, os.W_OK): pytest.skip('this user may write everywhere')
    try:
        with pytest.warns(UserWarning, match='kept in memory only'): f,n = run(vlm, task_of(paths), cache)
    finally:
        for o in folders: o.chmod(0o700)
    assert (len(f),n)==(4,1)

def test_dying_worker_is_survived(vlm, tmp_path, monkeypatch):
    main,load = os.getpid(),FileImages.load
    def killed(self, i, *a, **kw):
        if os.getpid()!=main: os._exit(1)
        return load(self, i, *a, **kw)
    monkeypatch.setattr(FileImages, 'load', killed)
    with pytest.warns(UserWarning, match='decoding process died'): f,_ = run(vlm, task_of(write_images(tmp_path/'in', 4)), False, workers=1)
    assert len(f)==4

# strong views

def test_strong_views_are_repeatable_and_cached_apart(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 6))
    plain,_ = run(vlm, task, tmp_path/'cache')
    a,n = run(vlm, task, tmp_path/'cache', augment='crop-flip')
    b,m = run(vlm, task, tmp_path/'cache', augment='crop-flip')
    other,_ = run(vlm, task.subset([3,1]), False, augment='crop-flip')
    assert (n,m)==(6,0) and torch.equal(a.V, b.V)
    torch.testing.assert_close(other.V, a.V[[3,1]], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain.V, a.V, atol=1e-3)
    assert run(vlm, task, tmp_path/'cache', augment='crop-flip', seed=1)[1]==6

def test_own_augmentation_is_cached_only_with_a_key(vlm, tmp_path):
    task = task_of(write_images(tmp_path/'in', 2))
    mirror = lambda im, rng: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert [run(vlm, task, tmp_path/'cache', augment=mirror)[1] for _ in range(2)]==[2,2]
    mirror.key = 'mirror'
    assert [run(vlm, task, tmp_path/'cache', augment=mirror)[1] for _ in range(2)]==[2,0]
    with pytest.raises(ValueError, match='crop-flip'): run(vlm, task, False, augment='flip')

@settings(max_examples=50, deadline=None)
@given(w=st.integers(1, 60), h=st.integers(1, 60), seed=st.integers(0, 99))
def test_crop_flip_keeps_half_of_the_area(w, h, seed):
    out = crop_flip(Image.new('RGB', (w,h)), np.random.default_rng(seed))
    assert out.width<=w and out.height<=h and min(out.size)>=1
    assert out.width*out.height >= .5*w*h*(3/4) - w - h
