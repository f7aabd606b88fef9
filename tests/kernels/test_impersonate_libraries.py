"""What libraries of kernels do on the host, on the impersonated GPU: operators, addresses, generators, contexts."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import scattered_kernels as kernels  # noqa: E402
import tutorial_kernels as tutorials  # noqa: E402

from kernbench.triton import impersonate  # noqa: E402


@pytest.fixture
def gpu():
    with impersonate("cuda:90") as ctx:
        yield ctx


def total(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + y, as a library writes it."""
    out = torch.empty(x.shape, device="cuda")
    assert x.is_cuda and out.device.type == "cuda"
    kernels.plus[(1,)](x, y, out, x.numel(), BLOCK=128)
    return out


def test_operators_registered_for_cuda(gpu):
    with torch.library._scoped_library("kb_libraries", "FRAGMENT") as library:
        library.define("total(Tensor x, Tensor y) -> Tensor")
        library.impl("total", lambda x, y: x - y, "CPU")
        library.impl("total", total, "CUDA")
        library.impl("total", lambda x, y: x * y, "CPU")  # of tensors that are not there
        x, y = torch.randn(100, device="cuda"), torch.randn(100, device="cuda")
        assert torch.equal(torch.ops.kb_libraries.total(x, y), x + y)


def test_operators_stay_for_the_next_impersonation():
    with torch.library._scoped_library("kb_libraries", "FRAGMENT") as library:
        for time in range(2):
            with impersonate("cuda:90"):
                if time == 0:
                    library.define("again(Tensor x, Tensor y) -> Tensor")
                    library.impl("again", total, "CUDA")
                x = torch.randn(100, device="cuda")
                assert torch.equal(torch.ops.kb_libraries.again(x, x), x + x)


def test_custom_operator_with_gradient(gpu):
    operator = torch.library.custom_op("kb_libraries::custom_total", mutates_args=(), device_types="cuda")(total)
    operator.register_autograd(lambda ctx, grad: (grad, total(grad, grad)))
    x, y = (torch.randn(100, device="cuda", requires_grad=True) for _ in range(2))
    made = operator(x, y)
    assert torch.equal(made, x + y)
    made.backward(torch.ones(100, device="cuda"))
    assert torch.equal(y.grad, torch.full((100,), 2.0))


def test_replaced_operators_of_torch(gpu):
    with torch.library._scoped_library("aten", "IMPL", "CUDA") as library:
        library.impl("atan2", total)
        x, y = torch.randn(100, device="cuda"), torch.randn(100, device="cuda")
        assert torch.equal(torch.atan2(x, y), x + y)
    assert torch.atan2(torch.zeros(1), torch.ones(1)).item() == 0


class Wrapped:
    """A tensor in an object of a library's own."""

    def __init__(self, base):
        self.base, self.dtype = base, base.dtype

    def data_ptr(self):
        return self.base.data_ptr()


def test_objects_that_hold_a_tensor(gpu):
    x, out = torch.randn(100, device="cuda"), torch.empty(100, device="cuda")
    kernels.plus[(1,)](Wrapped(x), x, Wrapped(out), 100, BLOCK=128)
    assert torch.equal(out, x * 2)


def test_a_grid_that_was_computed_on_the_gpu(gpu):
    x, out = torch.randn(100, device="cuda"), torch.empty(100, device="cuda")
    kernels.plus[(torch.tensor([1, 3], device="cuda").max() + 1,)](x, x, out, 100, BLOCK=32)
    assert torch.equal(out, x * 2)


def test_tables_of_addresses(gpu):
    tensors = [torch.randn(n, device="cuda") for n in (5, 64, 33, 2)]
    addresses = torch.tensor([t.data_ptr() for t in tensors], device="cuda")
    sizes = torch.tensor([len(t) for t in tensors], dtype=torch.int32, device="cuda")
    out = torch.zeros(4, 64, device="cuda")
    kernels.by_program[(4,)](addresses, sizes, out, BLOCK=16)
    assert all(torch.equal(row[: len(t)], t) for row, t in zip(out, tensors, strict=True))
    before, x = [t.clone() for t in tensors], torch.randn(4, device="cuda")
    kernels.by_element[(1,)](addresses, x, K=4)
    assert all(t[0] == x[i] and t[1] == before[i][1] * 2 for i, t in enumerate(tensors))
    tensors[0].fill_(7)  # the host writes between launches
    kernels.by_program[(4,)](addresses, sizes, out, BLOCK=16)
    assert torch.equal(out[0, :5], tensors[0])


def test_what_is_computed_on_the_host_stays_there(gpu):
    host = torch.randn(8, device="cuda").cpu()
    for made in (host.double(), host + 1, torch.cat([host, host]), torch.topk(host, 2)[0], host[None].mT):
        assert made.device.type == "cpu"
    assert (torch.ones(8, device="cuda") * host[0]).device.type == "cuda"


def test_default_devices(gpu):
    with torch.device("cuda"):
        assert torch.zeros(2).is_cuda and torch.zeros(2, device="cpu").device.type == "cpu"
    with torch.device("cpu"):
        assert torch.zeros(2).device.type == "cpu"
    torch.set_default_device("cuda")
    try:
        assert torch.arange(3).is_cuda
    finally:
        torch.set_default_device(None)


def test_a_device_that_is_named_counts_more_than_the_default(gpu):
    before = torch.get_default_device()
    torch.set_default_device("cuda")
    torch.set_default_device(before)  # as libraries put it back
    try:
        x = torch.zeros(3, device="cuda")
        assert x.device == torch.empty(2, device=x.device).device == torch.device("cuda", 0)
        assert torch.zeros(3).device == torch.device("cpu")
    finally:
        torch.set_default_device(None)


def test_a_generator_has_a_seed_and_an_offset(gpu):
    torch.cuda.manual_seed(5)
    seed, offset = torch.cuda.get_rng_state().view(torch.int64).tolist()
    assert seed == 5 and offset % 4 == 0
    state = torch.cuda.get_rng_state()
    first = torch.rand(4, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(4, device="cuda"))
    own = torch.Generator(device="cuda").manual_seed(3)
    again = torch.Generator(device="cuda").manual_seed(3)
    assert own.device.type == "cuda" and isinstance(torch.default_generator, torch.Generator)
    assert torch.equal(torch.rand(4, generator=own), torch.rand(4, generator=again))
    with pytest.raises(RuntimeError, match=r"uint8\[16\]"):
        own.set_state(torch.zeros(5, dtype=torch.uint8))


def test_autocast(gpu):
    x = torch.randn(4, 4, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def test_compiled_functions_and_device_guards(gpu):
    assert torch.compile(lambda x: x + 1)(torch.zeros(1)).item() == 1
    assert torch.compile(mode="max-autotune")(lambda x: x)(3) == 3
    with torch.cuda._DeviceGuard(0), torch.cuda.device(0):
        assert torch._C._cuda_getCurrentRawStream(0) == torch.cuda.current_stream().cuda_stream
    with pytest.raises(NotImplementedError, match="CUDA graphs"):
        torch.cuda.CUDAGraph()


def test_no_stages_are_one(gpu):
    x = torch.randn(9, 90, device="cuda")
    times = []
    for stages in (0, 1):
        out = torch.empty_like(x)
        args = (out, x, 90, 90, 9, 90, 128, stages)
        times.append(triton.testing.do_bench(lambda args=args: tutorials.softmax_kernel[(2,)](*args)))
        torch.testing.assert_close(out, x.softmax(1))
    assert times[0] == times[1] > 0


def test_histograms_of_integers(gpu):
    experts = torch.tensor([0, 2, 2, 5], device="cuda")
    for made in (torch.histc(experts, bins=6, min=0, max=5), experts.histc(bins=6, min=0, max=5)):
        assert made.dtype == torch.int64 and made.tolist() == [1, 0, 2, 0, 0, 1]


def test_everything_is_put_back():
    owners = (torch.cuda, torch.library.Library, torch, torch.amp.autocast_mode.autocast)
    before = [dict(vars(owner)) for owner in owners]
    with impersonate("cuda:90"):
        assert torch.compile is not before[2]["compile"]
    assert [dict(vars(owner)) for owner in owners] == before
    assert np.prod(torch.rand(2, generator=torch.Generator().manual_seed(1)).shape) == 2
