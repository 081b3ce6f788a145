"Prompts in real towers: nothing changes where nothing was put in, and what was put in is what open_clip itself computes with it."
import copy, json
from functools import cache
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save
from torch import nn
from pla_nb.backbones import Backbone, OpenClip, Starter
from pla_nb.data import fashion_mnist
from pla_nb.features import features
from pla_nb.prompts import Adapter, CoCoOp, MaPLe, Prompted, TextPrompts, VisualPrompts, prompts_for

torch.set_num_threads(1)
prop = settings(deadline=None, max_examples=15)
VISION = dict(image_size=32, layers=3, width=64, head_width=32, patch_size=8)
TEXT = dict(context_length=77, vocab_size=49408, width=48, heads=2, layers=3)
CLASSES,WORDS = ['cat','sea_horse','a bird with a very long name','dog'],'a photo of a'
SENTENCES = dict(dog='Dogs bark, and have four legs.')

def model(name='ViT-S-32', vision={}, text={}, **kw):
    return OpenClip(name, False, device='cpu', precision='fp32', embed_dim=32, vision_cfg={**VISION, **vision}, text_cfg={**TEXT, **text}, **kw)

def legacy(m): # sequence first, as older checkpoints of the package were built
    for t in (m.model.transformer, m.model.visual.transformer):
        t.batch_first = False
        for o in t.modules():
            if isinstance(o, nn.MultiheadAttention): o.batch_first = False
    return m

FAMILIES = dict(
    clip = model,
    custom = lambda: model(force_custom_text=True),
    siglip = lambda: model('ViT-B-16-SigLIP', text=dict(context_length=64, vocab_size=32000, hf_tokenizer_name='timm/ViT-B-16-SigLIP', no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6))),
    clipa = lambda: model('ViT-L-14-CLIPA', vision=dict(no_ln_pre=True, pool_type='avg', final_ln_after_pool=True), text=dict(no_causal_mask=True, pool_type='last')),
    mobile = lambda: model(text=dict(no_causal_mask=True), force_custom_text=True),
    coca = lambda: model('coca_ViT-B-32', vision=dict(attentional_pool=True, attn_pooler_heads=4, output_tokens=True), text=dict(context_length=76, embed_cls=True, output_tokens=True),
        multimodal_cfg=dict(context_length=76, vocab_size=49408, width=32, heads=2, layers=1)),
    eos = lambda: model(text=dict(pool_type='eos', eos_id=49407)),
    custom_blocks = lambda: model(vision=dict(block_type='custom', qk_norm=True, ls_init_value=.1), text=dict(block_type='custom', scale_fc=True)),
    legacy = lambda: legacy(model()),
)
family = cache(lambda name: FAMILIES[name]())
starter = cache(lambda: Starter(device='cpu', precision='fp32'))
every = pytest.mark.parametrize('name', FAMILIES)

def batch(n=2, seed=0): return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=0)
def size(m): return sum(p.numel() for p in m.parameters())
def said(vlm): return [vlm.template.replace('{}', c.replace('_',' ')) for c in CLASSES]

# nothing in, nothing changed

@every
def test_untouched_towers(name):
    vlm = family(name)
    T,V = vlm.encode_texts(said(vlm)),vlm.encode_images(batch())
    for p in (TextPrompts(vlm, CLASSES, 0), *(TextPrompts(vlm, CLASSES, n, WORDS) for n in (1,2,4)), CoCoOp(vlm, CLASSES), MaPLe(vlm, CLASSES, 2, 1)): close(p.texts(), T)
    for p in (VisualPrompts(vlm, 0), VisualPrompts(vlm, 0, 3), MaPLe(vlm, CLASSES, 0, 2), TextPrompts(vlm, CLASSES, 3)): close(p.images(batch()), V)
    assert T.std(0).max()>1e-3 and (TextPrompts(vlm, CLASSES, 3).texts()-T).abs().max()>1e-3 and (VisualPrompts(vlm, 2).images(batch())-V).abs().max()>1e-3

def test_untouched_starter():
    vlm = starter()
    T = vlm.encode_texts(said(vlm))
    for n,init in ((0,None),(0,WORDS),(2,WORDS),(4,WORDS)): close(TextPrompts(vlm, CLASSES, n, init).texts(), T)
    assert (TextPrompts(vlm, CLASSES, 4).texts()-T).abs().max()>1e-3

@prop
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5, unique=True), st.integers(0, 4))
def test_untouched_for_any_name(names, n):
    vlm = family('clip')
    close(TextPrompts(vlm, names, n, WORDS).texts(), vlm.encode_classes(names))

# something in: against open_clip's own forward with hooks, all positions and its own masks

def hooked(modules, f):
    "Output of `f` while modules have hooks: [(module, 'in' | 'out', change)]"
    def pre(change): return lambda m, args, kw: ((change(args[0]), *args[1:]), kw)
    handles = [m.register_forward_pre_hook(pre(c), with_kwargs=True) if side=='in' else m.register_forward_hook(lambda m, a, out, c=c: c(out)) for m,side,c in modules]
    try: return f()
    finally:
        for h in handles: h.remove()

def put(x, v, at):
    x = x.clone()
    x[:,at:at+len(v)] = v
    return x

def text_reference(vlm, rows, ctx, deep=(), at=1):
    "`rows`: token ids in which the vectors' places are taken by anything"
    t = getattr(vlm.model, 'text', vlm.model)
    blocks = t.transformer.resblocks
    hooks = [(t.token_embedding, 'out', lambda x: put(x, ctx, at))]
    hooks += [(blocks[i+1], 'in', lambda x, v=v: put(x, v, at)) for i,v in enumerate(deep)]
    return hooked(hooks, lambda: F.normalize(vlm.model.encode_text(rows), dim=-1))

def image_reference(vlm, x, ctx, deep=()):
    visual,n = vlm.model.visual,len(ctx)
    add = lambda x: torch.cat([x, ctx.expand(len(x), -1, -1)], 1)
    hooks = [(visual.ln_pre, 'in', add)] + [(visual.transformer.resblocks[i+1], 'in', lambda x, v=v: put(x, v, x.shape[1]-n)) for i,v in enumerate(deep)]
    return hooked(hooks, lambda: F.normalize(visual(x), dim=-1))

def with_places(vlm, sentences, n, skip=0, at=1, filler=5):
    "Rows with n places at `at` instead of the `skip` tokens there"
    rows = vlm.tokenizer(sentences)
    return torch.cat([rows[:,:at], torch.full((len(rows), n), filler), rows[:,at+skip:]], 1)[:,:rows.shape[1]]

@pytest.mark.parametrize('name,at', [('clip',1),('custom',1),('siglip',0),('mobile',1),('coca',1),('eos',1),('custom_blocks',1)])
@torch.no_grad()
def test_text_prompts_are_open_clips(name, at):
    vlm = family(name)
    p = TextPrompts(vlm, CLASSES, 5)
    nn.init.normal_(p.ctx, std=.5)
    close(p.texts(), text_reference(vlm, with_places(vlm, said(vlm), 5, at=at), p.ctx, at=at))
    assert (p.texts()-vlm.encode_classes(CLASSES)).abs().max()>1e-2

@pytest.mark.parametrize('name', ['clip','custom','eos','custom_blocks'])
@torch.no_grad()
def test_maple_is_open_clips(name):
    vlm = family(name)
    p = MaPLe(vlm, CLASSES, 2, 3)
    for o in p.parameters(): nn.init.normal_(o, std=.5)
    close(p.texts(), text_reference(vlm, with_places(vlm, said(vlm), 2, skip=2), p.ctx, p.deep))
    close(p.images(batch()), image_reference(vlm, batch(), p.proj(p.ctx), [f(v) for f,v in zip(p.deep_projs, p.deep)]))

@pytest.mark.parametrize('depth', [1,2,3])
@torch.no_grad()
def test_visual_prompts_are_open_clips(depth):
    vlm = family('clip')
    p = VisualPrompts(vlm, 3, depth)
    for o in p.parameters(): nn.init.normal_(o, std=.5)
    close(p.images(batch()), image_reference(vlm, batch(), p.ctx, p.deep))

@torch.no_grad()
def test_pooling_leaves_visual_prompts_out():
    vlm,(n,grid) = family('clipa'),(4,16)
    p = VisualPrompts(vlm, n)
    nn.init.normal_(p.ctx)
    visual = vlm.model.visual
    x = visual.transformer(torch.cat([visual._embeds(batch()), p.ctx.expand(2, -1, -1)], 1))
    close(p.images(batch()), F.normalize(visual.ln_post(x[:,1:1+grid].mean(1))@visual.proj, dim=-1))

@torch.no_grad()
def test_prompts_in_the_starter():
    vlm = starter()
    p = TextPrompts(vlm, CLASSES, 3, sentences=SENTENCES)
    nn.init.normal_(p.ctx, std=.5)
    for c,t in zip(CLASSES, p.texts()): # one sentence at a time, no padding
        ids = vlm.tokenizer([p.sentence(c)], return_tensors='pt')['input_ids']
        e = vlm.language.get_input_embeddings()(ids)
        h = vlm.language(inputs_embeds=torch.cat([e[:,:1], p.ctx[None], e[:,1:]], 1)).last_hidden_state.mean(1)
        close(t[None], vlm.to_joint(F.normalize(h, dim=-1)))

# sentences

@pytest.mark.parametrize('name', [*FAMILIES,'starter'])
@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(name):
    vlm = starter() if name=='starter' else family(name)
    p = TextPrompts(vlm, CLASSES, 3, sentences=SENTENCES)
    T = p.texts()
    close(p.texts(CLASSES[::-1]), T.flip(0))
    close(torch.cat([p.texts([c]) for c in CLASSES]), T)
    long = 'word '*(vlm.context_length if name!='starter' else 60)
    with pytest.warns(UserWarning) if name!='starter' else torch.no_grad(): padded = p.texts(['cat','long'], dict(long=long)) # to all positions
    close(padded[:1], T[:1])

def test_cut_rows_are_short():
    vlm = family('clip')
    assert TextPrompts(vlm, CLASSES, 4)._tower.room(['a cat.'], [], 4).x.shape[1]==4+5
    assert TextPrompts(family('siglip'), CLASSES, 4)._tower.room(['a cat.'], [], 4).x.shape[1]==64

@torch.no_grad()
def test_words_are_replaced_only_where_they_stand():
    vlm = family('clip')
    p = TextPrompts(vlm, CLASSES, 4, WORDS, SENTENCES)
    nn.init.normal_(p.ctx, std=.5)
    close(p.texts(['cat']), text_reference(vlm, with_places(vlm, ['a photo of a cat.'], 4, skip=4), p.ctx))
    close(p.texts(['dog']), text_reference(vlm, with_places(vlm, [SENTENCES['dog']], 4), p.ctx))

def test_more_vectors_than_words():
    vlm = family('clip')
    p = TextPrompts(vlm, CLASSES, 6, WORDS)
    words = vlm.model.token_embedding(vlm.tokenizer([WORDS])[0,1:5])
    assert torch.equal(p.ctx[2:], words) and not torch.equal(p.ctx[:2], words[:2]) and p.ctx[:2].abs().max()<.2
    close(p.texts(['cat']), text_reference(vlm, with_places(vlm, ['a photo of a cat.'], 6, skip=4), p.ctx))

@torch.no_grad()
def test_other_classes_and_sentences():
    vlm = family('clip')
    p = TextPrompts(vlm, CLASSES, 3, sentences=SENTENCES)
    close(p.texts(['horse','cat','dog']), p.encode(['a photo of a horse.','a photo of a cat.',SENTENCES['dog']]))
    close(p.texts(['dog'], dict(dog='A hot dog.')), p.encode(['A hot dog.']))
    assert (p.texts(['dog'])-p.texts(['dog'], dict(dog='A hot dog.'))).abs().max()>1e-3
    for bad in ([],'dog'):
        with pytest.raises(ValueError, match='list of class names'): p.texts(bad)

@torch.no_grad()
def test_long_sentences_lose_their_end():
    vlm = family('clip')
    words = [f'w{i}' for i in range(90)]
    with pytest.warns(UserWarning, match='room for 70 tokens.*1 of 1'): T = TextPrompts(vlm, CLASSES, 5, sentences=dict(cat=' '.join(words))).texts(['cat'])
    p = TextPrompts(vlm, CLASSES, 5)
    ids = vlm.tokenizer([' '.join(words)])
    rows = with_places(vlm, [' '.join(words)], 5)
    rows[:,-1] = 49407
    assert ids[0,-1]==49407
    close(T, text_reference(vlm, rows, p.ctx))

def test_tokens_are_made_once():
    vlm,calls = model(),[]
    tokenizer = vlm.tokenizer
    vlm.tokenizer = lambda texts: calls.append(len(texts)) or tokenizer(texts)
    p = MaPLe(vlm, CLASSES, 2, 2)
    p.texts()
    n = len(calls)
    for _ in range(3): p.texts()
    p.texts(['horse','cow'])
    for _ in range(3): p.texts(['horse','cow']); p.texts()
    assert len(calls)==n+1 and calls[-1]==2

# training

@pytest.mark.parametrize('make', [lambda v: TextPrompts(v, CLASSES, 4), lambda v: TextPrompts(v, CLASSES, 2, WORDS, SENTENCES), lambda v: VisualPrompts(v, 2, 3, classes=CLASSES),
    lambda v: MaPLe(v, CLASSES, 2, 3), lambda v: CoCoOp(v, CLASSES)])
@pytest.mark.parametrize('name', ['clip','siglip','coca'])
def test_a_step_moves_the_prompts_and_nothing_else(make, name):
    vlm = family(name)
    p,frozen = make(vlm),{k: v.clone() for k,v in vlm.model.state_dict().items()}
    before,T0 = copy.deepcopy(p.state_dict()),p.frozen_texts()
    V = p.images(batch())
    T = p(V) if isinstance(p, CoCoOp) else p.texts()
    loss = -(torch.einsum('bd,bcd->bc', V, T) if T.ndim==3 else V@T.T)[:,0].mean()
    opt = torch.optim.SGD(p.parameters(), .1)
    loss.backward(); opt.step()
    assert all(v.grad is not None and v.grad.any() for v in p.parameters())
    assert all(not torch.equal(v, before[k]) for k,v in p.state_dict().items())
    assert all(torch.equal(v, frozen[k]) for k,v in vlm.model.state_dict().items())
    assert not any(v.requires_grad or v.grad is not None for v in vlm.model.parameters())
    assert p.frozen_texts() is T0 and not T0.requires_grad and {k for k,_ in p.named_parameters()}==set(p.state_dict())
    close(T0, vlm.encode_texts([p.sentence(c) for c in CLASSES]))

def test_starter_learns():
    vlm = starter()
    frozen = {k: v.clone() for k,v in vlm.language.state_dict().items()}
    p = TextPrompts(vlm, CLASSES, 2, WORDS)
    target,opt = vlm.encode_texts(['a kitten','a fish','a sparrow','a puppy']),torch.optim.Adam(p.parameters(), .02)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(20*target@p.texts().T, torch.arange(4))
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1]<losses[0] and all(torch.equal(v, frozen[k]) for k,v in vlm.language.state_dict().items())

def test_first_call_without_gradients():
    vlm = family('clip')
    p = MaPLe(vlm, CLASSES, 2, 2)
    with torch.inference_mode(): p.texts(); p.frozen_texts()
    (p.texts()*p.frozen_texts()).sum().backward()
    assert p.ctx.grad.any()

def test_gradient_checkpointing_changes_nothing():
    vlm = model()
    grads = []
    for on in (False,True):
        vlm.model.set_grad_checkpointing(on)
        p = MaPLe(vlm, CLASSES, 2, 3)
        (p.images(batch())@p.texts().T)[0,0].backward()
        grads.append([v.grad for v in p.parameters()])
    for a,b in zip(*grads): close(a, b, 1e-6)

def test_outputs_are_float32_unit_norm_in_bf16():
    vlm = OpenClip('ViT-S-32', False, device='cpu', precision='bf16', embed_dim=32, vision_cfg=VISION, text_cfg=TEXT)
    p = MaPLe(vlm, CLASSES, 2, 3)
    V,T = p.images(batch()),p.texts()
    assert V.dtype==T.dtype==torch.float32 and p.frozen_texts().dtype==torch.float32
    for o in (V,T): close(o.norm(dim=1), torch.ones(len(o)), 1e-4)
    close(V, MaPLe(family('clip'), CLASSES, 2, 3).images(batch()), .05)
    V.sum().backward()
    assert p.proj.weight.grad.any()

def test_frozen_texts_are_exact_within_autocast():
    vlm = family('clip')
    with torch.autocast('cpu', torch.bfloat16): T = TextPrompts(vlm, CLASSES).frozen_texts()
    close(T, vlm.encode_texts(said(vlm)), 0)

def test_deep_maps_start_equal_and_part():
    p = MaPLe(family('clip'), CLASSES, 2, 3)
    a,b = p.deep_projs
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias) and not torch.equal(a.weight, p.proj.weight)
    p.images(batch()).sum().backward()
    assert a.weight is not b.weight and not torch.equal(a.weight.grad, b.weight.grad)

def test_seeds():
    vlm,state = family('clip'),torch.get_rng_state()
    make = lambda seed: torch.cat([v.flatten() for o in (TextPrompts(vlm, CLASSES, 3, seed=seed), VisualPrompts(vlm, 2, 2, seed), MaPLe(vlm, CLASSES, 2, 2, seed=seed), CoCoOp(vlm, CLASSES, seed=seed)) for v in o.parameters()]).detach()
    a = make(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(9)
    assert torch.equal(a, make(0)) and not torch.equal(a, make(1))

def test_copies_share_the_model():
    p = MaPLe(family('clip'), CLASSES, 2, 2)
    q = copy.deepcopy(p)
    with torch.no_grad(): q.ctx += 1
    assert q.vlm is p.vlm and q._tower is p._tower and not torch.equal(p.ctx, q.ctx)
    close(p.texts(), MaPLe(family('clip'), CLASSES, 2, 2).texts(), 0)
    assert not torch.equal(p.texts(), q.texts())

# sizes

def test_published_sizes():
    assert size(MaPLe(OpenClip('ViT-B-32', False, device='cpu', precision='fp32'), CLASSES))==3_160_064
    # the widths of ViT-L/14, with next to no MLPs
    large = OpenClip('ViT-L-14', False, device='cpu', precision='fp32', embed_dim=768, vision_cfg=dict(image_size=28, layers=8, width=1024, patch_size=14, mlp_ratio=.01),
        text_cfg=dict(context_length=77, vocab_size=49408, width=768, heads=12, layers=8, mlp_ratio=.01))
    assert size(MaPLe(large, CLASSES))==6_311_936
    assert size(Adapter(512))==131_712 and size(Adapter(768))==197_504

def test_adapter():
    u = F.normalize(torch.randn(5, 16), dim=1)
    close(Adapter(16)(u), u, 1e-6)
    a = Adapter(16, 4, .5, zero=False)
    close(a(u), F.normalize(u+.5*(F.relu(u@a.down.weight.T+a.down.bias)@a.up.weight.T+a.up.bias), dim=1))
    Adapter(16)(u)[:,0].sum().backward()

# CoCoOp

def test_each_image_shifts_its_texts():
    vlm = family('clip')
    p = CoCoOp(vlm, CLASSES)
    v = vlm.encode_images(batch())
    close(p(v), torch.stack([p(o) for o in v]))
    assert (p(v)[0]-p(v)[1]).abs().max()>1e-5
    shift = p.meta(v[0]).detach()
    q = TextPrompts(vlm, CLASSES, 4, WORDS)
    with torch.no_grad(): q.ctx += shift
    close(p(v[0]), q.texts())
    close(p(v[0], ['horse']), q.texts(['horse']))
    nn.init.zeros_(p.meta[2].weight); nn.init.zeros_(p.meta[2].bias)
    close(p(v[0]), p.texts())

# a model with its prompts

KINDS = dict(text=lambda v: TextPrompts(v, CLASSES, 3, WORDS, SENTENCES, 4), visual=lambda v: VisualPrompts(v, 2, 3, 1, CLASSES), maple=lambda v: MaPLe(v, CLASSES, 2, 3, sentences=SENTENCES), none=lambda v: VisualPrompts(v, 0))
def trained(kind):
    p = KINDS[kind](family('clip'))
    with torch.no_grad():
        for v in p.parameters(): v += .1*torch.randn(v.shape, generator=torch.Generator().manual_seed(v.numel()))
    return Prompted(p.vlm, p)

@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(kind):
    b = trained(kind)
    again = Prompted.restore(b.vlm, json.loads(json.dumps(b.spec())), load(save(b.tensors())))
    assert again.key==b.key and again.image_key==b.image_key and again.spec()==b.spec()
    assert torch.equal(again.encode_images(batch()), b.encode_images(batch())) and torch.equal(again.encode_classes(CLASSES), b.encode_classes(CLASSES))
    assert type(again.learned) is type(b.learned) and again.learned.classes==b.learned.classes

@pytest.mark.parametrize('kind', KINDS)
def test_prompted_is_a_backbone(kind):
    b = trained(kind)
    p = b.learned
    assert isinstance(b, Backbone) and (b.image_key!=b.vlm.image_key)==(kind in ('visual','maple')) and b.key!=b.vlm.key
    V,U = b.encode_pair(batch())
    close(V, p.images(batch()))
    assert U.shape==(2,b.vision_dim) and V.shape==(2,b.dim) and not V.requires_grad
    if p.classes:
        close(b.encode_classes(p.classes), p.texts())
        close(b.encode_texts(['a photo of a cat.','a cat']), p.encode(['a photo of a cat.','a cat']))
    close(b.encode_classes(['horse'], 'one {}'), b.encode_texts(['one horse']))
    f = features(b, fashion_mnist('test').subset(range(4)), cache=False, progress=False)
    close(f.V, b.encode_images(torch.stack([b.preprocess(fashion_mnist('test').images.load(i)) for i in range(4)])))
    assert f.vlm_key==b.key and repr(b)

def test_keys_follow_training():
    b = trained('maple')
    keys = b.key,b.image_key
    with torch.no_grad(): b.learned.deep[0,0,0] += 1
    assert b.key!=keys[0] and b.image_key!=keys[1]
    c = Prompted(b.vlm, TextPrompts(b.vlm, CLASSES, 3))
    d = Prompted(b.vlm, TextPrompts(b.vlm, CLASSES[:2], 3))
    assert c.key!=d.key and c.image_key==d.image_key==b.vlm.image_key

def test_text_prompts_use_cached_image_features(tmp_path):
    vlm,task = family('clip'),fashion_mnist('test').subset(range(4))
    features(vlm, task, cache=tmp_path, progress=False)
    b = Prompted(vlm, TextPrompts(vlm, CLASSES, 3))
    b._images = None # would fail if asked
    assert len(features(b, task, cache=tmp_path, progress=False))==4

def test_prompted_starter():
    vlm = starter()
    b = Prompted(vlm, TextPrompts(vlm, CLASSES, 2))
    again = Prompted.restore(vlm, b.spec(), b.tensors())
    assert b.image_key==vlm.image_key and torch.equal(again.encode_classes(CLASSES), b.encode_classes(CLASSES))

# errors

def test_models_without_a_place():
    with pytest.raises(ValueError, match="'maple', but starter allows 'features', 'text'.*VLM"): prompts_for(starter(), CLASSES, 'maple')
    for make in (lambda: MaPLe(starter(), CLASSES), lambda: VisualPrompts(starter())):
        with pytest.raises(ValueError, match="visual tower.*starter.*'features', 'text'"): make()
    bare = copy.copy(family('clip'))
    bare.prompts = frozenset()
    with pytest.raises(ValueError, match="text tower.*'features'\\."): TextPrompts(bare, CLASSES)
    with pytest.raises(ValueError, match="dial 'text' or 'maple', got 'features'"): prompts_for(bare, CLASSES, 'features')

def test_dials():
    vlm = family('clip')
    t,m = prompts_for(vlm, CLASSES, 'text', sentences=SENTENCES, seed=3),prompts_for(vlm, CLASSES, 'maple', depth=3)
    assert (type(t),t.n_ctx,t.sentences['dog'],t.seed,t.kind)==(TextPrompts,16,SENTENCES['dog'],3,'text')
    assert (type(m),m.n_ctx,m.depth,m.kind)==(MaPLe,2,3,'multimodal') and VisualPrompts(vlm).kind=='visual'

def test_timm_image_tower_takes_text_prompts_only():
    vlm = OpenClip('ViT-B-16-SigLIP', False, device='cpu', precision='fp32', embed_dim=192, vision_cfg=dict(image_size=32, timm_model_name='resnet10t', timm_pool='avg', timm_proj='linear'),
        text_cfg=dict(context_length=64, vocab_size=32000, hf_tokenizer_name='timm/ViT-B-16-SigLIP', width=48, heads=2, layers=1, no_causal_mask=True, pool_type='last'))
    assert prompts_for(vlm, CLASSES, 'text').texts().shape==(4,192)
    with pytest.raises(ValueError, match='visual tower'): MaPLe(vlm, CLASSES)

def test_errors_say_what_to_do():
    vlm = family('clip')
    with pytest.raises(ValueError, match='between 1 and 3 .text tower: 3 layers, image tower: 3 layers., got 8'): MaPLe(vlm, CLASSES)
    with pytest.raises(ValueError, match='between 1 and 3'): VisualPrompts(vlm, depth=0)
    with pytest.raises(ValueError, match='77 tokens: expected n_ctx of at most 74, got 75'): TextPrompts(vlm, CLASSES, 75)
    with pytest.raises(ValueError, match='n_ctx of 0 or more'): TextPrompts(vlm, CLASSES, -1)
    with pytest.raises(ValueError, match="list of class names, got 'cat'"): TextPrompts(vlm, 'cat')
    with pytest.raises(ValueError, match="one sentence for 'dog'"): TextPrompts(vlm, CLASSES, sentences=dict(dog=['a','b']))
    with pytest.raises(ValueError, match='list of class names'): VisualPrompts(vlm).texts()
    with pytest.raises(ValueError, match='made for'): Prompted(family('custom'), TextPrompts(vlm, CLASSES))
    with pytest.raises(ValueError, match='image features'): Prompted(vlm, CoCoOp(vlm, CLASSES))

def test_restore_refuses_what_does_not_fit():
    b = trained('maple')
    with pytest.raises(ValueError, match="expected a spec of .*MaPLe, got prompts='X'"): Prompted.restore(b.vlm, dict(b.spec(), prompts='X'), b.tensors())
    with pytest.raises(ValueError, match='do not fit MaPLe'): Prompted.restore(b.vlm, b.spec(), {k: v for k,v in b.tensors().items() if k!='ctx'})
    with pytest.raises(ValueError, match='do not fit MaPLe'): Prompted.restore(b.vlm, dict(b.spec(), n_ctx=3), b.tensors())
    with pytest.warns(UserWarning, match='other weights'): Prompted.restore(model(seed=1), b.spec(), b.tensors())
