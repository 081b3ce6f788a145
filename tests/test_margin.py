"The identities of the margin and its loss."
import math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pla_nb.margin import *

prop = settings(deadline=None, max_examples=60)
torch.set_num_threads(1)
both = pytest.mark.parametrize('weighting', ['paper','released'])

@st.composite
def cases(draw):
    "Texts W, prototypes V (C,d), which classes have images, counts (C,) with at least one prediction"
    c, g = draw(st.integers(2, 8)), torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    offset = draw(st.sampled_from([0., 2.]))
    counts = torch.tensor(draw(st.lists(st.integers(0, 30), min_size=c, max_size=c).filter(any)))
    return torch.randn(c, 6, generator=g)+offset, torch.randn(c, 6, generator=g)+offset, torch.rand(c, generator=g)>.3, counts

def ratio(counts, **kw): return class_ratio(torch.repeat_interleave(torch.arange(len(counts)), counts), len(counts), **kw)

def batch(c, seed=0, n=7):
    g = torch.Generator().manual_seed(seed)
    return 5*torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)

# similarity
@prop
@given(cases())
def test_fusion_is_the_larger_cosine(case):
    W, V, has, _ = case
    S = similarity_fusion(W, V, has)
    cos = lambda a,b: float(F.cosine_similarity(a, b, 0))
    v = [V[c] if has[c] else W[c] for c in range(len(W))]
    for i in range(len(W)):
        for j in range(len(W)): assert S[i,j].item()==pytest.approx(max(cos(W[i], W[j]), cos(v[i], v[j])), abs=1e-5)
    assert torch.equal(S, S.T) or torch.allclose(S, S.T, atol=1e-6)
    assert (S.diagonal()==1).all() and torch.allclose(S, similarity_fusion(3*W, V*7, has), atol=1e-5)

def test_class_without_images_is_found_by_its_zero_row():
    W, V = torch.randn(3, 4), torch.randn(3, 4)
    V[1] = 0
    assert torch.equal(similarity_fusion(W, V), similarity_fusion(W, V, torch.tensor([True,False,True])))

@prop
@given(cases())
def test_min_max_rescale_is_identity(case):
    W, V, has, _ = case
    S = similarity_fusion(W, V, has).double()
    low, high = S.amin(1, keepdim=True), S.amax(1, keepdim=True)
    assert torch.allclose(low+(S-low)/(high-low).clamp(min=1e-12)*(1-low), S, atol=1e-6)

# ratio and weights
@prop
@given(cases())
def test_ratio(case):
    r = ratio(case[3])
    assert r.max()==1 and (r>=0).all() and torch.allclose(r, case[3]/case[3].max())

def test_nobody_is_confident():
    y = torch.tensor([0,1,1])
    assert class_ratio(y, 3, confident=torch.zeros(3, dtype=torch.bool)).tolist()==[1,1,1]
    assert class_ratio(torch.tensor([-1,-1]), 3).tolist()==[1,1,1]

def test_ratio_counts_confident_and_trusts_seen():
    y, sure = torch.tensor([0,0,0,1,1,2,-1]), torch.tensor([True,True,False,True,True,False,True])
    assert class_ratio(y, 3, sure).tolist()==[1,1,0]
    assert class_ratio(y, 3, sure, seen=[2]).tolist()==[1,1,1]

@prop
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_released_weighting_is_the_paper_with_a_convex_map(r):
    r = torch.tensor([*r, 1.]).double()
    delta = 1-r
    assert torch.allclose(delta/(2-delta), (1-r)/(1+r))
    assert float(r.max()-r.min())==pytest.approx(float(delta.max()))
    assert torch.allclose(imbalance_weights(r, 'released'), 12*(r.max()-r.min())*(1-r)/(1+r))
    assert torch.allclose(imbalance_weights(r, 'paper'), 12*delta.max()*delta)
    assert (imbalance_weights(r, 'released')<=imbalance_weights(r, 'paper')+1e-9).all()

# matrix
@both
@prop
@given(cases(), st.floats(0, 20))
def test_matrix_bounds(weighting, case, m):
    W, V, has, counts = case
    M = margin_matrix(similarity_fusion(W, V, has), ratio(counts), m, weighting)
    assert (M>=0).all() and (M<=m*(1+1e-6)).all() and (M.diagonal()==0).all() and not M.requires_grad

@both
@prop
@given(cases(), st.integers(1, 50))
def test_equal_counts_need_no_margin(weighting, case, n):
    W, V, has, counts = case
    assert margin_matrix(similarity_fusion(W, V, has), ratio(torch.full_like(counts, n)), weighting=weighting).abs().max()==0

@both
def test_class_never_predicted_has_the_full_margin(weighting):
    S = similarity_fusion(torch.rand(3, 4), torch.rand(3, 4))
    M = margin_matrix(S, torch.tensor([1.,.5,0.]), 12., weighting)
    assert torch.allclose(M[2,:2], 12*S[2,:2])
    assert (M[0]==0).all()

def test_seen_rows_have_no_margin():
    S, r = torch.rand(4, 4), class_ratio(torch.tensor([0,0,0,1]), 4, seen=[1,3])
    M = margin_matrix(S, r)
    assert (M[[0,1,3]]==0).all() and (M[2]>0).any()

def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="'paper' or 'released'"): imbalance_weights(torch.ones(2), 'both')
    with pytest.raises(ValueError, match='3 x 3'): margin_matrix(torch.eye(2), torch.ones(3))
    with pytest.raises(ValueError, match='one shape'): similarity_fusion(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match='each of the 2 texts'): similarity_fusion(torch.ones(2, 3), torch.ones(3, 3), joint=False)
    with pytest.raises(ValueError, match='below 2'): class_ratio(torch.tensor([0,2]), 2)
    with pytest.raises(ValueError, match='reduction'): margin_loss(torch.zeros(1, 2), torch.tensor([0]), reduction='max')

# loss
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@prop
@given(st.integers(2, 8), st.integers(0, 999))
def test_no_margin_is_cross_entropy(reduction, c, seed):
    z, y = batch(c, seed)
    for M in (None, torch.zeros(c, c)): assert torch.allclose(margin_loss(z, y, M, reduction=reduction), F.cross_entropy(z, y, reduction=reduction), atol=1e-5)

@prop
@given(cases(), st.integers(0, 999))
def test_loss_is_the_formula(case, seed):
    W, V, has, counts = case
    z, y = batch(len(W), seed)
    M = margin_matrix(similarity_fusion(W, V, has), ratio(counts))
    loss = margin_loss(z, y, M, reduction='none')
    assert torch.allclose(loss, F.cross_entropy(z+M[y], y, reduction='none'), atol=1e-5)
    for n in range(len(y)):
        t = int(y[n])
        rest = sum(math.exp(z[n,c]+M[t,c]) for c in range(len(W)) if c!=t)
        assert loss[n].item()==pytest.approx(-z[n,t].item()+math.log(math.exp(z[n,t])+rest), abs=1e-4)
    assert (loss>=F.cross_entropy(z, y, reduction='none')-1e-5).all() # a cost, never a gift

def test_diagonal_is_ignored():
    z, y = batch(4)
    M = torch.rand(4, 4)
    assert torch.allclose(margin_loss(z, y, M), margin_loss(z, y, M.clone().fill_diagonal_(99)))

def test_gradients():
    z, y = batch(4, n=3)
    z, M = z.double().requires_grad_(), torch.rand(4, 4).fill_diagonal_(0).requires_grad_()
    margin_loss(z, y, M).backward()
    p = (z.detach()+M.detach()[y]).softmax(1)
    assert torch.allclose(z.grad, (p-F.one_hot(y, 4))/3, atol=1e-6) and M.grad is None

def test_weights():
    z, y = batch(3)
    w = torch.tensor([True,False,True,True,False,False,True])
    M = torch.rand(3, 3)
    assert torch.allclose(margin_loss(z, y, M, w), margin_loss(z[w], y[w], M))
    assert torch.allclose(margin_loss(z, y, M, 2.5*w), margin_loss(z, y, M, w))
    z.requires_grad_()
    loss = margin_loss(z, y, M, torch.zeros(7))
    loss.backward()
    assert loss.item()==0 and (z.grad==0).all()

def test_half_precision_logits():
    z, y = batch(3)
    assert margin_loss(z.bfloat16(), y, torch.rand(3, 3)).dtype==torch.float32

# images in a space of their own
@prop
@given(cases())
def test_fusion_of_two_spaces(case):
    W, V, has, _ = case
    S, text = similarity_fusion(W, V[:,:3], has, joint=False), F.normalize(W, dim=1)
    text = text@text.T
    both = has[:,None]&has
    image = F.normalize(V[:,:3], dim=1)
    want = torch.where(both, torch.maximum(text, image@image.T), text).fill_diagonal_(1)
    assert torch.allclose(S, want, atol=1e-5)

# expected shares
@prop
@given(cases(), st.integers(0, 99))
def test_ratio_against_expected_shares(case, seed):
    counts = case[3]
    share = torch.rand(len(counts), generator=torch.Generator().manual_seed(seed))+.1
    r = ratio(counts, prior=share)
    assert torch.allclose(r, (counts/share)/(counts/share).max(), atol=1e-6)
    assert torch.allclose(ratio(counts, prior=torch.full_like(share, .2)), ratio(counts)) # equal shares change nothing
    if (counts>0).all(): assert ratio(counts, prior=counts.float()).allclose(torch.ones(len(counts))) # as many as expected: nobody is short

def test_class_without_share_sets_no_standard():
    y = torch.tensor([0]*9+[1]*2+[2])
    assert class_ratio(y, 3, prior=[0.,.5,.5]).tolist()==[0,1,.5]
    with pytest.raises(ValueError, match='3 shares'): class_ratio(y, 3, prior=[1.,1.])

# candidates
@prop
@given(st.integers(2, 8), st.integers(0, 999))
def test_partial_loss(c, seed):
    z, y = batch(c, seed)
    assert torch.allclose(partial_loss(z, F.one_hot(y, c)), F.cross_entropy(z, y), atol=1e-5)
    cand = torch.rand(7, c, generator=torch.Generator().manual_seed(seed)).scatter(1, y[:,None], 1.)
    cand[:,:-1] *= cand[:,:-1]>.5
    w = torch.rand(7)
    each = -((z.softmax(1)*cand).sum(1)).log()
    assert torch.allclose(partial_loss(z, cand), each.mean(), atol=1e-4)
    assert torch.allclose(partial_loss(z, cand, w), (each*w).sum()/w.sum(), atol=1e-4)
    assert float(partial_loss(z, torch.ones(7, c)))==pytest.approx(0, abs=1e-5) # all classes: nothing to learn

def test_partial_loss_has_a_gradient_where_classes_are_excluded():
    z = torch.tensor([[1e4,0.,0.],[0.,0.,0.]], requires_grad=True)
    cand = torch.tensor([[0.,1.,1.],[1.,1.,0.]])
    loss = partial_loss(z, cand)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all() and z.grad[0,0]>0 and z.grad[0,1]<0
    with pytest.raises(ValueError, match='first image 1'): partial_loss(z, torch.tensor([[1.,0,0],[0,0,0]]))
    with pytest.raises(ValueError, match='shape of the logits'): partial_loss(z, cand[:1])
